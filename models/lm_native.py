"""Decoding token by token without a framework, directly in the memory of the parameters.

For a single token of a small model, a framework spends more time on starting operations than on
arithmetic. Only this module decides when native steps replace `lm`: on a CPU with native kernels
and float32 parameters, for xLSTM Large and the original xLSTM stack. The arithmetic is in
`decode.cpp` of `metal/native/ops`, and is tested against `lm`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.models import families, model, ngrams, xlstm_large, xlstm_v1
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.layers.xlstm_v1 import CELL_EPS
from mlxhog.models.ops.kernels import resolve
from mlxhog.models.ops.operators import activation_name
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config

Float32 = NDArray[np.float32]
Params = Mapping[str, Float32]
Layer = tuple[Float32 | None, Float32 | None]
Shapes = Sequence[Sequence[tuple[int, ...]]]
"""Shape of every part of every block's state, without the batch axis."""


def decoder(
    cfg: ModelConfig, params: Mapping[str, Any], *, framework: str, kernels: str, threads: int
) -> "Decoder | None":
    """Return the native decoder of a model on the CPU; None if `lm` has to be used.

    Args:
        cfg: the model.
        params: name -> NumPy view of its memory, which is read at every step.
        framework: the framework whose operators it replaces.
        kernels: operators of the model, one of `CHOICES` in `models/ops/kernels.py`.
        threads: threads that a step may use.
    """
    if resolve(framework, kernels, "cpu") != "native":
        return None
    if any(value.dtype != np.float32 or not value.flags.c_contiguous for value in params.values()):
        return None
    if isinstance(cfg, XLSTMLargeConfig):
        step = _large(cfg, params)
    elif isinstance(cfg, XLSTMV1Config):
        step = _v1(cfg, params)
    else:
        return None
    return Decoder(
        step, cfg.vocab_size, model.state_shapes(cfg), threads, params.get(ngrams.WEIGHT)
    )


class Decoder:
    """Decodes a model token by token, for a few sequences at a time.

    Their states are one array (B, N): a row has the parts of one block after another.

    Args:
        native: the native step of the model.
        vocab_size: V.
        shapes: shapes of the parts of a state of `lm`.
        threads: threads of the native kernel; used only for large models.
        W: of a model with tables of n-grams, see `ngrams.py`; read at every step.

    Concurrency: several threads may step at a time.
    """

    def __init__(
        self,
        native: _native.Decoder,
        vocab_size: int,
        shapes: Shapes,
        threads: int,
        W: Float32 | None = None,
    ) -> None:
        self._native, self._vocab_size, self._W = native, vocab_size, W
        self._shapes, self._threads = shapes, threads

    def init_state(self, B: int) -> Float32:
        """Return the state before the first token of B sequences, (B, N)."""
        return np.zeros((B, self._native.state_floats), np.float32)

    def step(
        self, tokens: NDArray[np.int32], state: Float32, rows: Float32 | None = None
    ) -> tuple[Float32, Float32]:
        """Read one token of each sequence.

        Args:
            tokens: (B,), in [0, V).
            state: (B, N); not changed.
            rows: (B, orders * k), those of the tokens' n-grams, for a model with tables.

        Returns:
            Capped logits (B, V), and the state after the token.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        after = np.empty_like(state)
        logits = np.empty((len(tokens), self._vocab_size), np.float32)
        added = None
        if self._W is not None:
            assert rows is not None
            # One by one: a product of all would round a row by the number of the others.
            added = np.stack([self._W @ row for row in rows])
        self._native.step(
            np.ascontiguousarray(tokens), state, after, logits, added=added, threads=self._threads
        )
        return logits, after

    def pack(self, blocks: Sequence[Sequence[Float32]]) -> Float32:
        """Return a state of `lm`, a tuple of arrays (B, ...) per block, as (B, N)."""
        parts = [part.reshape(len(part), -1) for block in blocks for part in block]
        return np.concatenate(parts, axis=1)

    def unpack(self, state: Float32) -> list[tuple[Float32, ...]]:
        """Return a state (B, N) as a state of `lm`, as views."""
        blocks, at = [], 0
        for shapes in self._shapes:
            parts = []
            for shape in shapes:
                size = math.prod(shape)
                parts.append(state[:, at : at + size].reshape(len(state), *shape))
                at += size
            blocks.append(tuple(parts))
        return blocks


_LARGE = (
    "norm_mlstm",
    "mlstm_layer.q",
    "mlstm_layer.k",
    "mlstm_layer.v",
    "mlstm_layer.ogate_preact",
    "mlstm_layer.igate_preact",
    "mlstm_layer.fgate_preact",
    "mlstm_layer.multihead_norm",
    "mlstm_layer.out_proj",
    "norm_ffn",
    "ffn.proj_up_gate",
    "ffn.proj_up",
    "ffn.proj_down",
)
"""Of a block of xLSTM Large, in the order of `LargeLayer` in `metal/native/ops/decode.h`."""


def _large(cfg: XLSTMLargeConfig, params: Params) -> _native.Decoder:
    """Make the native decoder; the parameters are read where they lie, at every step."""
    blocks = [
        ("large", [_layer(params, f"{p}.{name}") for name in _LARGE])
        for p in (f"backbone.blocks.{n}" for n in range(cfg.num_hidden_layers))
    ]
    out_norm, out_norm_bias = _layer(params, xlstm_large.OUT_NORM)
    return _native.Decoder(
        embedding=params[xlstm_large.EMBEDDING],
        head=params[families.head(cfg)],
        out_norm=out_norm,
        out_norm_bias=out_norm_bias,
        blocks=blocks,
        rms=True,
        norm_eps=cfg.norm_eps,
        cell_eps=cfg.eps,
        gate_cap=cfg.gate_soft_cap,
        logit_cap=cfg.output_logit_soft_cap,
        activation="gelu",
        reset_token=_reset_token(cfg),
    )


def _layer(params: Params, name: str) -> Layer:
    return params.get(f"{name}.weight"), params.get(f"{name}.bias")


def _reset_token(cfg: ModelConfig) -> int:
    token = families.reset_token(cfg)
    return -1 if token is None else token


_MLSTM = (
    "xlstm_norm",
    "xlstm.proj_up",
    "xlstm.conv1d.conv",
    "xlstm.q_proj",
    "xlstm.k_proj",
    "xlstm.v_proj",
    "xlstm.mlstm_cell.igate",
    "xlstm.mlstm_cell.fgate",
    "xlstm.mlstm_cell.outnorm",
    "xlstm.learnable_skip",
    "xlstm.proj_down",
)
_SLSTM = (
    "xlstm_norm",
    "xlstm.conv1d.conv",
    "xlstm.fgate",  # drives the input gate, see `mad/layers/xlstm_v1.py`
    "xlstm.igate",
    "xlstm.zgate",
    "xlstm.ogate",
    "xlstm.slstm_cell",
    "xlstm.group_norm",
    "ffn_norm",
    "ffn.proj_up",
    "ffn.proj_down",
)
"""Of each kind of block of the original stack, in the order of `decode.h`, too."""


def _v1(cfg: XLSTMV1Config, params: Params) -> _native.Decoder:
    """Make the native decoder; the parameters are read where they lie, at every step."""
    ffn = cfg.feedforward if cfg.slstm_at else None
    return _native.Decoder(
        embedding=params[xlstm_v1.EMBEDDING],
        head=params[families.head(cfg)],
        out_norm=params[f"{xlstm_v1.OUT_NORM}.weight"] if cfg.add_post_blocks_norm else None,
        blocks=[_v1_block(cfg, layer, params) for layer in range(cfg.num_blocks)],
        rms=False,
        norm_eps=cfg.norm_eps,
        cell_eps=CELL_EPS,
        activation=activation_name(ffn.act_fn) if ffn else "gelu",
        reset_token=_reset_token(cfg),
    )


def _v1_block(cfg: XLSTMV1Config, layer: int, params: Params) -> tuple[str, list[Layer]]:
    p, is_slstm = f"xlstm_block_stack.blocks.{layer}", layer in cfg.slstm_at
    own: dict[str, Layer] = {
        "xlstm.slstm_cell": (
            params.get(f"{p}.xlstm.slstm_cell._recurrent_kernel_"),
            params.get(f"{p}.xlstm.slstm_cell._bias_"),
        ),
        "xlstm.learnable_skip": (params.get(f"{p}.xlstm.learnable_skip"), None),
    }
    layers = [
        own.get(name) or _layer(params, f"{p}.{name}") for name in (_SLSTM if is_slstm else _MLSTM)
    ]
    return "slstm" if is_slstm else "mlstm", layers
