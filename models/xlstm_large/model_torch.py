"""xLSTM Large in PyTorch: the equations of this package, as functions of parameters.

`params` maps every name of `param_spec(cfg)` to a float32 tensor of that shape. All functions are
pure: they write no input.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlxhog.models.forward_pass import CLOSED_GATE, Pass
from mlxhog.models.ops.kernels import Ops
from mlxhog.models.xlstm_large import OUT_NORM, XLSTMLargeConfig, block_name

Params = Mapping[str, Tensor]
State = tuple[Tensor, Tensor, Tensor]
"""Of one block: C (B, NH, DK, DV), n (B, NH, DK), m (B, NH), float32."""


def init_state(cfg: XLSTMLargeConfig, B: int) -> list[State]:
    """Return the state before the first token of B sequences: zeros, one triple per block."""
    NH, DK, DV = cfg.num_heads, cfg.qk_head_dim, cfg.v_head_dim
    return [
        (torch.zeros(B, NH, DK, DV), torch.zeros(B, NH, DK), torch.zeros(B, NH))
        for _ in range(cfg.num_hidden_layers)
    ]


def blocks(
    cfg: XLSTMLargeConfig,
    params: Params,
    x: Tensor,
    state: Sequence[State] | None,
    run: Pass[Tensor],
) -> tuple[Tensor, list[State]]:
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
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Block `layer`: the mLSTM layer and the feed-forward layer, each normed and added to x."""
    p = block_name(layer)
    u = norm(cfg, params, f"{p}.norm_mlstm", x, run.ops)
    y, state = mlstm_layer(cfg, params, f"{p}.mlstm_layer", u, state, run)
    x = x + y
    u = norm(cfg, params, f"{p}.norm_ffn", x, run.ops)
    return x + ffn(params, f"{p}.ffn", u, run.ops), state


def mlstm_layer(
    cfg: XLSTMLargeConfig, params: Params, p: str, u: Tensor, state: State | None, run: Pass[Tensor]
) -> tuple[Tensor, State]:
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
        f = torch.where(run.starts[..., None], CLOSED_GATE, f)
    h, state = ops.mlstm_cell(q, k, v, i, f, chunk_size=cfg.chunk_size, eps=cfg.eps, state=state)
    y = ops.head_norm_gate(h, o, params[f"{p}.multihead_norm.weight"], cfg.norm_eps)
    if cfg.use_bias:
        y = y + torch.sigmoid(o) * params[f"{p}.multihead_norm.bias"]
    (y,) = linears(params, (f"{p}.out_proj",), y, ops)
    return y, state


def ffn(params: Params, p: str, u: Tensor, ops: Ops[Tensor]) -> Tensor:
    """The gated feed-forward layer; u and result (B, S, d)."""
    gate, up = linears(params, (f"{p}.proj_up_gate", f"{p}.proj_up"), u, ops)
    (y,) = linears(params, (f"{p}.proj_down",), ops.swiglu(gate, up), ops)
    return y


def norm(cfg: XLSTMLargeConfig, params: Params, name: str, x: Tensor, ops: Ops[Tensor]) -> Tensor:
    """RMSNorm with the scale `name`, and its bias if the model has one; (..., d)."""
    y = ops.rms_norm(x, params[f"{name}.weight"], cfg.norm_eps)
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def linears(
    params: Params, names: Sequence[str], x: Tensor, ops: Ops[Tensor]
) -> tuple[Tensor, ...]:
    """The linear maps `names` of one x, with their biases if the model has any; (..., out) each."""
    weights = [params[f"{name}.weight"] for name in names]
    return ops.linears(x, weights, [params.get(f"{name}.bias") for name in names])
