"""Decoding token by token without a framework, directly in the memory of the parameters.

For a single token of a small model, a framework spends more time on dispatch than on arithmetic.
This module decides when native steps replace `lm`: on a CPU with native kernels and float32
parameters, for both xLSTM families. The arithmetic is in `metal/native/ops/decode.cpp`.
"""

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.models import families, model, ngrams
from mlxhog.models.families import ModelConfig, State
from mlxhog.models.layers.feed_forward import FeedForwardV1
from mlxhog.models.layers.xlstm import CELL_EPS, LargeMLSTM
from mlxhog.models.model import Block
from mlxhog.models.ops.kernels import resolve
from mlxhog.models.ops.operators import activation_name

Float32 = NDArray[np.float32]
Params = Mapping[str, Float32]
Layer = tuple[Float32 | None, Float32 | None]


def decoder(
    cfg: ModelConfig, params: Mapping[str, Any], *, framework: str, kernels: str, threads: int
) -> "NativeDecoder | None":
    """Return the native decoder of a model on the CPU; None if `lm` has to be used.

    It replaces the `kernels` of a framework, and reads `params`, float32 views, at every step.
    """
    if resolve(framework, kernels, "cpu") != "native":
        return None
    return NativeDecoder(cfg, params, threads) if can_decode(cfg) else None


def can_decode(cfg: ModelConfig) -> bool:
    """Whether a model with float32 weights has a native decoder, which knows no adapters."""
    return cfg.model_type in ("xlstm", "xlstm_v1") and cfg.adapter is None


class NativeDecoder:
    """Decodes a model token by token, for a few sequences at a time.

    A state is packed into one array (B, N): the parts of all blocks, flattened. Only large models
    use several `threads`.

    Concurrency: several threads may step at a time.
    """

    def __init__(self, cfg: ModelConfig, params: Params, threads: int) -> None:
        self._native, self._W = _native_decoder(cfg, params), params.get(ngrams.WEIGHT)
        self._vocab_size = cfg.vocab_size
        self._threads, self._grams = threads, ngrams.of(cfg)

    def step(
        self, tokens: NDArray[np.int32], state: State | None, rows: Float32 | None = None
    ) -> tuple[Float32, State]:
        """Read a token (B,) of each sequence; return capped logits (B, V), and the state after it.

        The old state is not changed, None is initial; rows (B, orders * k) are those of the tokens'
        n-grams.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        shape = len(tokens), self._native.state_floats
        before = np.zeros(shape, np.float32) if state is None else state[-1][0]
        after, logits = np.empty_like(before), np.empty((len(tokens), self._vocab_size), np.float32)
        added = None
        if self._W is not None:
            assert rows is not None
            # One by one: a matmul of all would round a row by the number of the others.
            added = np.stack([self._W @ row for row in rows])
        self._native.step(
            np.ascontiguousarray(tokens), before, after, logits, added=added, threads=self._threads
        )
        if self._grams is None:
            return logits, [(after,)]
        ids = self._grams.ids(tokens[:, None], None if state is None else state[0][0])
        return logits, [(ids[:, 1:],), (after,)]


def pack(cfg: ModelConfig, state: State) -> State:
    """Pack a state of `lm`, in NumPy, for a decoder."""
    first = len(state) - len(cfg.layout.blocks)  # after any ids
    parts = [part.reshape(len(part), -1) for block in state[first:] for part in block]
    return [*state[:first], (np.concatenate(parts, axis=1),)]


def unpack(cfg: ModelConfig, state: State) -> State:
    """Return a state of `lm`, as views of a packed one."""
    (*ids, (packed,)), of_blocks = state, model.state_shapes(cfg)
    sizes = [math.prod(shape) for shapes in of_blocks for shape in shapes]
    parts = iter(np.split(packed, list(accumulate(sizes))[:-1], axis=1))
    blocks = (
        tuple(next(parts).reshape(len(packed), *shape) for shape in shapes) for shapes in of_blocks
    )
    return [*ids, *blocks]


_LAYERS = {
    "mlstm-large": (
        "large",
        "norm_mlstm mlstm_layer.q mlstm_layer.k mlstm_layer.v mlstm_layer.ogate_preact "
        "mlstm_layer.igate_preact mlstm_layer.fgate_preact mlstm_layer.multihead_norm "
        "mlstm_layer.out_proj norm_ffn ffn.proj_up_gate ffn.proj_up ffn.proj_down",
    ),
    "mlstm-v1": (
        "mlstm",
        "xlstm_norm xlstm.proj_up xlstm.conv1d.conv xlstm.q_proj xlstm.k_proj xlstm.v_proj "
        "xlstm.mlstm_cell.igate xlstm.mlstm_cell.fgate xlstm.mlstm_cell.outnorm "
        "xlstm.learnable_skip xlstm.proj_down",
    ),
    "slstm-v1": (  # the package's fgate drives the input gate, see `layers/xlstm.py`
        "slstm",
        "xlstm_norm xlstm.conv1d.conv xlstm.fgate xlstm.igate xlstm.zgate xlstm.ogate "
        "xlstm.slstm_cell xlstm.group_norm ffn_norm ffn.proj_up ffn.proj_down",
    ),
}
"""Mixer of a block -> its kind and layers in `metal/native/ops/decode.cpp`, in that order."""


def _native_decoder(cfg: ModelConfig, params: Params) -> _native.Decoder:
    """Make the native decoder, which reads the parameters in place at every step."""
    layout = cfg.layout
    inner = [part.layer for block in layout.blocks for part in block]
    acts = (layer.act_fn for layer in inner if isinstance(layer, FeedForwardV1))
    cell_eps, caps = CELL_EPS, dict[str, Any]()
    if isinstance(large := inner[0], LargeMLSTM):
        cell_eps = large.eps
        caps = {"gate_cap": large.gate_cap, "logit_cap": cfg.output_logit_soft_cap}
    names = [spec.name.rpartition(".")[0] for spec in layout.out_norm[:1]]
    out_norm, out_norm_bias = _layer(params, names[0]) if names else (None, None)
    token = families.reset_token(cfg)
    return _native.Decoder(
        embedding=params[families.embedding(cfg)],
        head=params[families.head(cfg)],
        out_norm=out_norm,
        out_norm_bias=out_norm_bias,
        blocks=[_block(block, params) for block in layout.blocks],
        rms=layout.norms[0] == "rms",
        norm_eps=cfg.norm_eps,
        cell_eps=cell_eps,
        activation=activation_name(next(acts, "gelu")),
        reset_token=-1 if token is None else token,
        **caps,
    )


def _block(block: Block, params: Params) -> tuple[str, list[Layer]]:
    kind, names = _LAYERS[block[0].layer.name]
    prefix = block[0].name.rpartition(".")[0]
    return kind, [_layer(params, f"{prefix}.{name}") for name in names.split()]


def _layer(params: Params, name: str) -> Layer:
    """Return weight and bias of a layer: R and b of an sLSTM cell, a skip itself."""
    weights = (params.get(name + end) for end in (".weight", "._recurrent_kernel_", ""))
    biases = (params.get(name + end) for end in (".bias", "._bias_"))
    weight = next((w for w in weights if w is not None), None)
    return weight, next((b for b in biases if b is not None), None)
