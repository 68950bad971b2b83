"""xLSTM Large one token at a time without a framework, from the memory of its parameters.

A framework spends more time on starting the operations of one token than on the arithmetic of a
small model. The kernel is `metal/native/ops/decode_large.cpp`; `model_torch.py` and `model_mlx.py`
are the plain forms that it is tested against.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mlxhog._native import XlstmLargeDecoder
from mlxhog.models import families, packed_state
from mlxhog.models.xlstm_large import EMBEDDING, OUT_NORM, XLSTMLargeConfig, block_name

Float32 = NDArray[np.float32]

_LAYERS = (
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
"""The layers of a block in the order of `BlockLayer` in `metal/native/ops/decode_large.h`."""


class Decoder:
    """The model's next token, for a few sequences at a time.

    Their states are one array (B, N): a row holds the C, n and m of one block after another.

    Args:
        cfg: the model.
        params: name -> float32 array, C-contiguous; they are read where they lie, at every step.
        threads: of the native kernel, used where a model is large enough to gain.

    Concurrency: several threads may step at a time.
    """

    def __init__(
        self, cfg: XLSTMLargeConfig, params: Mapping[str, Float32], *, threads: int
    ) -> None:
        """See the class."""
        blocks = [
            [(params[f"{p}.{n}.weight"], params.get(f"{p}.{n}.bias")) for n in _LAYERS]
            for p in map(block_name, range(cfg.num_hidden_layers))
        ]
        cap, reset = cfg.output_logit_soft_cap, families.reset_token(cfg)
        self._native = XlstmLargeDecoder(
            d=cfg.hidden_size,
            heads=cfg.num_heads,
            DK=cfg.qk_head_dim,
            DV=cfg.v_head_dim,
            U=cfg.ffn_dim,
            V=cfg.vocab_size,
            norm_eps=cfg.norm_eps,
            eps=cfg.eps,
            gate_cap=cfg.gate_soft_cap,
            logit_cap=0.0 if cap is None else cap,
            reset_token=-1 if reset is None else reset,
            embedding=params[EMBEDDING],
            blocks=blocks,
            out_norm=params.get(f"{OUT_NORM}.weight"),
            out_norm_bias=params.get(f"{OUT_NORM}.bias"),
            head=params[families.head(cfg)],
        )
        self._cfg, self._threads = cfg, threads

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
        logits = np.empty((len(tokens), self._cfg.vocab_size), np.float32)
        self._native.step(np.ascontiguousarray(tokens), state, after, logits, threads=self._threads)
        return logits, after

    def pack(self, blocks: Sequence[Sequence[Float32]]) -> Float32:
        """Return a twin's state, per block C (B, NH, DK, DV), n (B, NH, DK), m (B, NH), as ours."""
        return packed_state.pack(blocks)

    def unpack(self, state: Float32) -> list[tuple[Float32, ...]]:
        """Return the state as the twins have it, as views."""
        NH, DK, DV = self._cfg.num_heads, self._cfg.qk_head_dim, self._cfg.v_head_dim
        block = ((NH, DK, DV), (NH, DK), (NH,))
        return packed_state.unpack(state, [block] * self._cfg.num_hidden_layers)
