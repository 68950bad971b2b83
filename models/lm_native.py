"""A language model's next token without a framework, from the memory of its parameters.

A framework spends more time on starting the operations of one token than on the arithmetic of a
small model. This is the one place that says when native steps stand in for `lm`: on a CPU where the
native kernels compute, with float32 parameters, for families with a `decode_native`. The arithmetic
is in `decode_large.cpp` and `decode_v1.cpp` of `metal/native/ops`; `lm` is the plain form that it
is tested against.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import XlstmLargeDecoder, XlstmV1Decoder
from mlxhog.models import xlstm_large, xlstm_v1
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops.kernels import resolve
from mlxhog.models.xlstm_large import decode_native as native_large
from mlxhog.models.xlstm_v1 import decode_native as native_v1

Float32 = NDArray[np.float32]
Params = Mapping[str, Float32]
Step = XlstmLargeDecoder | XlstmV1Decoder
Shapes = Sequence[Sequence[tuple[int, ...]]]
"""Of every part of every block's state, without the sequences of the batch."""


_FAMILIES: dict[str, tuple[Callable[[Any, Params], Step], Callable[[Any], Shapes]]] = {
    "xlstm": (native_large.native_step, xlstm_large.model.state_shapes),
    "xlstm_v1": (native_v1.native_step, xlstm_v1.model.state_shapes),
}


def decoder(
    cfg: ModelConfig, params: Mapping[str, Any], *, framework: str, kernels: str, threads: int
) -> "Decoder | None":
    """Return the native step of a model on the CPU; None where `lm` has to do it.

    Args:
        cfg: the model.
        params: name -> NumPy array of its memory, read there at every step.
        framework: whose operators it stands in for.
        kernels: which ops, one of `CHOICES` in `models/ops/kernels.py`.
        threads: that the step may use.
    """
    if resolve(framework, kernels, "cpu") != "native":
        return None
    if any(value.dtype != np.float32 or not value.flags.c_contiguous for value in params.values()):
        return None
    if cfg.model_type not in _FAMILIES:
        return None
    native_step, state_shapes = _FAMILIES[cfg.model_type]
    return Decoder(native_step(cfg, params), cfg.vocab_size, state_shapes(cfg), threads)


class Decoder:
    """A model's next token, for a few sequences at a time.

    Their states are one array (B, N): a row holds the parts of one block after another.

    Args:
        native: the step of the family.
        vocab_size: V.
        shapes: of the parts of a state as `lm` has it.
        threads: of the native kernel, used where a model is large enough to gain.

    Concurrency: several threads may step at a time.
    """

    def __init__(self, native: Step, vocab_size: int, shapes: Shapes, threads: int) -> None:
        self._native, self._vocab_size = native, vocab_size
        self._shapes, self._threads = shapes, threads

    def init_state(self, B: int) -> Float32:
        """Return the state before the first token of B sequences, (B, N)."""
        return np.zeros((B, self._native.state_floats), np.float32)

    def step(self, tokens: NDArray[np.int32], state: Float32) -> tuple[Float32, Float32]:
        """Read one token of each sequence.

        Args:
            tokens: (B,), in [0, V).
            state: (B, N); it stays as it is.

        Returns:
            Capped logits (B, V), and the state after the token.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        after = np.empty_like(state)
        logits = np.empty((len(tokens), self._vocab_size), np.float32)
        self._native.step(np.ascontiguousarray(tokens), state, after, logits, threads=self._threads)
        return logits, after

    def pack(self, blocks: Sequence[Sequence[Float32]]) -> Float32:
        """Return a state of `lm`, a tuple of arrays (B, ...) per block, as (B, N)."""
        parts = [part.reshape(len(part), -1) for block in blocks for part in block]
        return np.concatenate(parts, axis=1)

    def unpack(self, state: Float32) -> list[tuple[Float32, ...]]:
        """Return a state (B, N) as `lm` has it, as views."""
        blocks, at = [], 0
        for shapes in self._shapes:
            parts = []
            for shape in shapes:
                size = math.prod(shape)
                parts.append(state[:, at : at + size].reshape(len(state), *shape))
                at += size
            blocks.append(tuple(parts))
        return blocks
