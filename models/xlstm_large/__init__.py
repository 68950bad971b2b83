"""xLSTM Large, the architecture of xLSTM-7B: its sizes, equations and parameters.

With B batch, S sequence, d = hidden_size, NH heads, DK = d * qk_dim_factor / NH,
DV = d * v_dim_factor / NH, V vocabulary, U the width of the feed-forward layer:

    x = E[tokens]                                              (B, S, d)
    in every block:
        u = RMSNorm(x; norm_mlstm)
        q = Wq u,  k = Wk u,  v = Wv u,  o = Wo u              per head DK, DK, DV, DV
        i = cap(Wi u + bi, 15),  f = cap(Wf u + bf, 15)        (B, S, NH)
        x = x + Wout( sigmoid(o) * (LayerNorm_per_head(mLSTM(q, k, v, i, f)) * w) )
        u = RMSNorm(x; norm_ffn)
        x = x + Wdown( silu(Wgate u) * (Wup u) )               width U
    logits = cap(RMSNorm(x; out_norm) H^T, 30)                 cap(x, c) = c * tanh(x / c)

The mLSTM cell of one head, with s = DK^-1/2 and the state C (DK, DV), n (DK), m (scalar), zero at
the start:

    m' = max(logsig(f) + m, i)       F = exp(logsig(f) + m - m')       I = exp(i - m')
    C = F C + I k^T v                n = F n + I k                     m = m'
    h = s q C / ( max(|s q.n|, exp(-m)) + eps )

The loss is the mean cross entropy of the capped logits over all labels other than -100.

Sources: Beck et al. 2024, xLSTM, arXiv:2405.04517; Beck et al. 2025, xLSTM 7B, arXiv:2503.13427;
names and rounding of sizes as in transformers 5.23, initial values as in NX-AI/xlstm-jax.
"""

import math
from dataclasses import replace
from typing import Literal

from mlxhog.models.spec import ParamSpec
from mlxhog.models.xlstm_large.config import XLSTMLargeConfig

__all__ = ["XLSTMLargeConfig", "block_name", "param_count", "param_spec"]

EMBEDDING = "backbone.embeddings.weight"
OUT_NORM = "backbone.out_norm"
LM_HEAD = "lm_head"


def param_spec(cfg: XLSTMLargeConfig) -> dict[str, ParamSpec]:
    """Declare every parameter of the model, in the order in which the model uses them.

    Initial values are those of the training code of the papers (NX-AI/xlstm-jax): "small" normals
    of std sqrt(2 / 5d), "wang" normals of std 2 / (blocks * sqrt(d)) into the residual stream, gate
    matrices zero, input-gate bias -10, forget-gate biases from 3 to 6.

    Args:
        cfg: the model.

    Returns:
        Name -> spec. Matrices decay; the embedding, norms and biases do not.
    """
    d, dqk, dv, ffn = cfg.hidden_size, cfg.qk_dim, cfg.v_dim, cfg.ffn_dim
    small = f"normal:{math.sqrt(2 / (5 * d))!r}"
    wang = f"normal:{2 / (cfg.num_hidden_layers * math.sqrt(d))!r}"
    spec: dict[str, ParamSpec] = {}

    def add(
        name: str,
        shape: tuple[int, ...],
        init: str,
        *,
        kind: Literal["dense", "rows"] = "dense",
        decay: bool = False,
        product: bool = False,
    ) -> None:
        spec[name] = ParamSpec(name, shape, init, kind, decay, product)

    def linear(name: str, out: int, width: int, init: str) -> None:
        add(f"{name}.weight", (out, width), init, decay=True, product=True)
        if cfg.use_bias:
            add(f"{name}.bias", (out,), "zeros")

    def gate(name: str, bias: str) -> None:
        add(f"{name}.weight", (cfg.num_heads, d), "zeros", decay=True)
        add(f"{name}.bias", (cfg.num_heads,), bias)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", (width,), "ones")
        if cfg.use_bias:
            add(f"{name}.bias", (width,), "zeros")

    # A tied embedding has a dense gradient: every row is also a row of the head.
    add(EMBEDDING, (cfg.vocab_size, d), small, kind="dense" if cfg.tie_word_embeddings else "rows")
    for layer in range(cfg.num_hidden_layers):
        block = block_name(layer)
        norm(f"{block}.norm_mlstm", d)
        linear(f"{block}.mlstm_layer.q", dqk, d, small)
        linear(f"{block}.mlstm_layer.k", dqk, d, small)
        linear(f"{block}.mlstm_layer.v", dv, d, small)
        linear(f"{block}.mlstm_layer.ogate_preact", dv, d, "zeros")
        gate(f"{block}.mlstm_layer.igate_preact", "constant:-10.0")
        gate(f"{block}.mlstm_layer.fgate_preact", "linspace:3.0:6.0")
        norm(f"{block}.mlstm_layer.multihead_norm", dv)
        linear(f"{block}.mlstm_layer.out_proj", d, dv, wang)
        norm(f"{block}.norm_ffn", d)
        linear(f"{block}.ffn.proj_up_gate", ffn, d, small)
        linear(f"{block}.ffn.proj_up", ffn, d, small)
        linear(f"{block}.ffn.proj_down", d, ffn, wang)
    if cfg.add_out_norm:
        add(f"{OUT_NORM}.weight", (d,), "ones")
    if cfg.out_norm_bias:
        add(f"{OUT_NORM}.bias", (d,), "zeros")
    if not cfg.tie_word_embeddings:
        add(f"{LM_HEAD}.weight", (cfg.vocab_size, d), small, decay=True, product=True)
    return spec


def block_name(layer: int) -> str:
    """Prefix of the parameters of block `layer`, counted from 0."""
    return f"backbone.blocks.{layer}"


def param_count(cfg: XLSTMLargeConfig) -> int:
    """Number of elements of all parameters, found without listing them: all blocks are alike."""
    one, two = (
        sum(spec.size for spec in param_spec(replace(cfg, num_hidden_layers=layers)).values())
        for layers in (1, 2)
    )
    return one + (cfg.num_hidden_layers - 1) * (two - one)
