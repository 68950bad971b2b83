"""The mixture of SwiGLUs in PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.moe_swiglu import MoESwiGLU

State = tuple[()]


def init_state(layer: MoESwiGLU, d: int, B: int) -> State:
    """Nothing is kept."""
    return ()


def forward(
    layer: MoESwiGLU,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d). All experts are computed, and those not taken weigh 0."""
    E = layer.experts
    (scores,) = run.ops.linears(x, [p["router.weight"]], [p["router.bias"]])
    gate, up = run.ops.linears(x, [p["w1.weight"], p["w2.weight"]])
    h = run.ops.swiglu(gate, up)
    taken = scores >= scores.sort(-1).values[..., E - layer.active, None]
    if layer.router == "top-k":
        share = torch.softmax(torch.where(taken, scores, -torch.inf), -1)
        weighted = h.reshape(*h.shape[:-1], E, layer.inner) * share[..., None]
        (y,) = run.ops.linears(weighted.flatten(-2), [p["w3.weight"]])
        return y, ()
    share = torch.softmax(torch.where(taken, scores, 0.0), -1)
    (z,) = run.ops.linears(h, [p["w3.weight"]])
    return (z.reshape(*x.shape, E) * share[..., None, :]).sum(-1), ()
