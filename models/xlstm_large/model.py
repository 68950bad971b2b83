"""xLSTM Large, the architecture of xLSTM-7B: its equations, parameters and forward pass.

With B batch, S sequence, d = hidden_size, NH heads, DK = d * qk_dim_factor / NH,
DV = d * v_dim_factor / NH, V vocabulary, U the width of the feed-forward layer:

    x = E[tokens]                                              (B, S, d)
    with `ngram_orders`, x = x + rows of n-grams               see models/ngrams.py
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

`params` maps every name of `param_spec(cfg)` to a float32 array of that shape. All functions are
pure: they write no input.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from mlxhog.models import ngrams
from mlxhog.models.forward_pass import CLOSED_GATE, Pass
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec
from mlxhog.models.xlstm_large.config import XLSTMLargeConfig

EMBEDDING = "backbone.embeddings.weight"
OUT_NORM = "backbone.out_norm"
LM_HEAD = "lm_head"

Params = Mapping[str, Array]
State = tuple[Array, Array, Array]
"""Of one block: C (B, NH, DK, DV), n (B, NH, DK), m (B, NH), float32."""


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
    spec |= {one.name: one for one in ngrams.weight_specs(cfg)}
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


def state_shapes(cfg: XLSTMLargeConfig) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes of C, n and m of every block, for one sequence."""
    NH, DK, DV = cfg.num_heads, cfg.qk_head_dim, cfg.v_head_dim
    return [((NH, DK, DV), (NH, DK), (NH,))] * cfg.num_hidden_layers


def init_state(cfg: XLSTMLargeConfig, B: int, xp: Arrays[Array]) -> list[tuple[Array, ...]]:
    """Return the state before the first token of B sequences: zeros, one triple per block."""
    return [tuple(xp.zeros((B, *shape)) for shape in shapes) for shapes in state_shapes(cfg)]


def blocks(
    cfg: XLSTMLargeConfig,
    params: Params,
    x: Array,
    state: Sequence[State] | None,
    run: Pass[Array],
) -> tuple[Array, list[State]]:
    """From the embedded tokens (B, S, d) to the final norm, and the state after the last."""
    new_state = []
    for layer in range(cfg.num_hidden_layers):
        x, layer_state = block(cfg, params, layer, x, state[layer] if state else None, run)
        new_state.append(layer_state)
        run.note(x)
    if cfg.add_out_norm:
        x = norm(cfg, params, OUT_NORM, x, run.ops)
        run.note(x)
    return x, new_state


def block(
    cfg: XLSTMLargeConfig,
    params: Params,
    layer: int,
    x: Array,
    state: State | None,
    run: Pass[Array],
) -> tuple[Array, State]:
    """Block `layer`: the mLSTM layer and the feed-forward layer, each normed and added to x."""
    p = block_name(layer)
    u = norm(cfg, params, f"{p}.norm_mlstm", x, run.ops)
    y, state = mlstm_layer(cfg, params, f"{p}.mlstm_layer", u, state, run)
    x = x + y
    u = norm(cfg, params, f"{p}.norm_ffn", x, run.ops)
    return x + ffn(params, f"{p}.ffn", u, run.ops), state


def mlstm_layer(
    cfg: XLSTMLargeConfig, params: Params, p: str, u: Array, state: State | None, run: Pass[Array]
) -> tuple[Array, State]:
    """The mLSTM cell between its projections, gates and head norm; u and result (B, S, d)."""
    B, S, _ = u.shape
    ops = run.ops
    names = [
        f"{p}.{name}" for name in ("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact")
    ]
    q, k, v, o, i, f = linears(params, names, u, ops)
    q = q.reshape(B, S, cfg.num_heads, cfg.qk_head_dim)
    k = k.reshape(B, S, cfg.num_heads, cfg.qk_head_dim)
    v = v.reshape(B, S, cfg.num_heads, cfg.v_head_dim)
    i = ops.soft_cap(i, cfg.gate_soft_cap)
    f = ops.soft_cap(f, cfg.gate_soft_cap)
    if run.starts is not None:
        f = ops.xp.where(run.starts[..., None], CLOSED_GATE, f)
    h, state = ops.mlstm_cell(q, k, v, i, f, chunk_size=cfg.chunk_size, eps=cfg.eps, state=state)
    y = ops.head_norm_gate(h, o, params[f"{p}.multihead_norm.weight"], cfg.norm_eps)
    if cfg.use_bias:
        y = y + ops.xp.sigmoid(o) * params[f"{p}.multihead_norm.bias"]
    (y,) = linears(params, (f"{p}.out_proj",), y, ops)
    return y, state


def ffn(params: Params, p: str, u: Array, ops: Ops) -> Array:
    """The gated feed-forward layer; u and result (B, S, d)."""
    gate, up = linears(params, (f"{p}.proj_up_gate", f"{p}.proj_up"), u, ops)
    (y,) = linears(params, (f"{p}.proj_down",), ops.swiglu(gate, up), ops)
    return y


def norm(cfg: XLSTMLargeConfig, params: Params, name: str, x: Array, ops: Ops) -> Array:
    """RMSNorm with the scale `name`, and its bias if the model has one; (..., d)."""
    y = ops.rms_norm(x, params[f"{name}.weight"], cfg.norm_eps)
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def linears(params: Params, names: Sequence[str], x: Array, ops: Ops) -> tuple[Array, ...]:
    """The linear maps `names` of one x, with their biases if the model has any; (..., out) each."""
    weights = [params[f"{name}.weight"] for name in names]
    return ops.linears(x, weights, [params.get(f"{name}.bias") for name in names])
