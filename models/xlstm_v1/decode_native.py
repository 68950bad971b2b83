"""The original xLSTM stack one token at a time without a framework, from its parameters' memory.

The kernel is `metal/native/ops/decode_v1.cpp`; `model_torch.py` and `model_mlx.py` are the plain
forms that it is tested against.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import XlstmV1Decoder
from mlxhog.models import families, packed_state
from mlxhog.models.ops.activations import known
from mlxhog.models.xlstm_v1 import CELL_EPS, NORM_EPS, OUT_NORM, XLSTMV1Config, block_name

Float32 = NDArray[np.float32]

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
    "xlstm.fgate",  # drives the input gate, see `__init__.py`
    "xlstm.igate",
    "xlstm.zgate",
    "xlstm.ogate",
    "xlstm.slstm_cell",
    "xlstm.group_norm",
    "ffn_norm",
    "ffn.proj_up",
    "ffn.proj_down",
)
"""The layers of each kind of block, in the order of `metal/native/ops/decode_v1.h`."""

Layer = tuple[Float32 | None, Float32 | None]


class Decoder:
    """The model's next token; see `Decoder` in `models/xlstm_large/decode_native.py`."""

    def __init__(self, cfg: XLSTMV1Config, params: Mapping[str, Float32], *, threads: int) -> None:
        """See the class."""
        at = range(cfg.num_blocks)
        mlstm = cfg.mlstm_layer if cfg.mlstm_at else None
        slstm = cfg.slstm_layer if cfg.slstm_at else None
        fed = cfg.feedforward if slstm else None
        inner, reset = cfg.inner_dim if mlstm else 0, families.reset_token(cfg)
        self._native = XlstmV1Decoder(
            d=cfg.embedding_dim,
            V=cfg.vocab_size,
            I=inner,
            mlstm_heads=mlstm.num_heads if mlstm else 0,
            mlstm_taps=mlstm.conv1d_kernel_size if mlstm else 1,
            groups=inner // mlstm.qkv_proj_blocksize if mlstm else 0,
            slstm_heads=slstm.num_heads if slstm else 0,
            slstm_taps=slstm.conv1d_kernel_size if slstm else 0,
            U=cfg.ffn_dim if fed else 0,
            activation=known(fed.act_fn) if fed else "gelu",
            norm_eps=NORM_EPS,
            cell_eps=CELL_EPS,
            reset_token=-1 if reset is None else reset,
            embedding=params[families.embedding(cfg)],
            blocks=[(layer in cfg.slstm_at, _layers(cfg, layer, params)) for layer in at],
            out_norm=params[f"{OUT_NORM}.weight"] if cfg.add_post_blocks_norm else None,
            head=params[families.head(cfg)],
        )
        self._cfg, self._threads = cfg, threads
        self._shapes = [_state_shapes(cfg, layer) for layer in at]

    def init_state(self, B: int) -> Float32:
        """Return the state before the first token of B sequences, (B, N)."""
        return np.zeros((B, self._native.state_floats), np.float32)

    def step(self, tokens: NDArray[np.int32], state: Float32) -> tuple[Float32, Float32]:
        """Read one token of each sequence: tokens (B,), state (B, N), which stays as it is.

        Returns:
            Logits (B, V), and the state after the token.

        Raises:
            ValueError: a token is outside the vocabulary.
        """
        after = np.empty_like(state)
        logits = np.empty((len(tokens), self._cfg.vocab_size), np.float32)
        self._native.step(np.ascontiguousarray(tokens), state, after, logits, threads=self._threads)
        return logits, after

    def pack(self, blocks: Sequence[Sequence[Float32]]) -> Float32:
        """Return a twin's state as ours."""
        return packed_state.pack(blocks)

    def unpack(self, state: Float32) -> list[tuple[Float32, ...]]:
        """Return the state as the twins have it, as views."""
        return packed_state.unpack(state, self._shapes)


def _layers(cfg: XLSTMV1Config, layer: int, params: Mapping[str, Float32]) -> list[Layer]:
    p, found = block_name(layer), list[Layer]()
    for name in _SLSTM if layer in cfg.slstm_at else _MLSTM:
        full = f"{p}.{name}"
        if name == "xlstm.slstm_cell":
            found.append((params[f"{full}._recurrent_kernel_"], params[f"{full}._bias_"]))
        elif name == "xlstm.learnable_skip":
            found.append((params[full], None))
        else:
            found.append((params.get(f"{full}.weight"), params.get(f"{full}.bias")))
    return found


def _state_shapes(cfg: XLSTMV1Config, layer: int) -> list[tuple[int, ...]]:
    if layer in cfg.slstm_at:
        slstm, d = cfg.slstm_layer, cfg.embedding_dim
        taps, cell = slstm.conv1d_kernel_size, (slstm.num_heads, d // slstm.num_heads)
        return [*([(taps - 1, d)] if taps else []), *[cell] * 4]
    mlstm, I = cfg.mlstm_layer, cfg.inner_dim  # noqa: E741  the spec's letter
    NH, DK = mlstm.num_heads, I // mlstm.num_heads
    return [(mlstm.conv1d_kernel_size - 1, I), (NH, DK, DK), (NH, DK), (NH,)]
