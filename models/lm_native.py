"""A language model's next token without a framework, by the `decode_native` of its family.

This is the one place that says when it stands in for the twins: on a CPU where the native kernels
compute, with float32 parameters. The arithmetic is in `decode_large.cpp` and `decode_v1.cpp` of
`metal/native/ops`.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops import kernels

Float32 = NDArray[np.float32]


class Decoder(Protocol):
    """One token for a few sequences, whose states are the rows of one array (B, N)."""

    def init_state(self, B: int) -> Float32:
        """Return the state before the first token."""

    def step(self, tokens: NDArray[np.int32], state: Float32) -> tuple[Float32, Float32]:
        """Read tokens (B,); return logits (B, V) and the new state."""

    def pack(self, blocks: Sequence[Sequence[Float32]]) -> Float32:
        """Return a twin's state as (B, N)."""

    def unpack(self, state: Float32) -> list[tuple[Float32, ...]]:
        """Return a state as a twin has it."""


def decoder(
    cfg: ModelConfig, params: Mapping[str, Any], *, framework: str, chosen: str, threads: int
) -> Decoder | None:
    """Return the native step of a model on the CPU; None where the twin's operators have to do.

    Args:
        cfg: the model.
        params: name -> NumPy array of its memory.
        framework: whose twin it stands in for.
        chosen: which ops, one of `CHOICES` in `models/ops/kernels.py`.
        threads: that the step may use.
    """
    if kernels.resolve(framework, chosen, "cpu") != "native":
        return None
    if any(value.dtype != np.float32 or not value.flags.c_contiguous for value in params.values()):
        return None
    if not families.of(cfg).decodes_natively:
        return None
    family = importlib.import_module(f"{families.of(cfg).package}.decode_native")
    made: Decoder = family.Decoder(cfg, params, threads=threads)
    return made
