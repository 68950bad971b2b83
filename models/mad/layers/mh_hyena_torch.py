"""Hyena of several heads in PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers.long_filter_torch import taps
from mlxhog.models.mad.layers.mh_hyena import MHHyena

State = tuple[Tensor, Tensor, Tensor]
"""The last inputs of the short convolution (B, k - 1, 3 d), and every key and value (B, L, NH, dh),
float32. Of a row that has read fewer than L positions, the first are 0.
"""


def init_state(layer: MHHyena, d: int, B: int) -> State:
    """Return the state before the first token: zeros, and nothing."""
    empty = torch.zeros(B, 0, layer.heads, d // layer.heads)
    return torch.zeros(B, layer.kernel - 1, 3 * d), empty, empty


def forward(
    layer: MHHyena,
    cfg: MADConfig,
    p: Mapping[str, Tensor],
    x: Tensor,
    state: State | None,
    run: Pass[Tensor],
) -> tuple[Tensor, State]:
    """Map x (B, S, d) to y (B, S, d) and the state after the last position."""
    B, S, d = x.shape
    (u,) = run.ops.linears(x, [p["in_proj.weight"]], [p["in_proj.bias"]])
    u, last = run.ops.causal_conv(
        u.repeat(1, 1, layer.groups),
        p["conv.weight"],
        p["conv.bias"],
        state=None if state is None else state[0],
        silu=False,
    )
    q, v, k = (y.reshape(B, S, layer.heads, -1) for y in u.chunk(3, -1))
    if state is not None:
        k, v = torch.cat([state[1], k], 1), torch.cat([state[2], v], 1)
    L = k.shape[1]
    # Weight of key j for query t, whose own key is L - S + t.
    f = taps(p, L, cfg.max_length)
    f = torch.cat([f[:, :1] + p["skip"][:, None], f[:, 1:]], 1)
    ahead = torch.arange(L - S, L)[:, None] - torch.arange(L)[None, :]
    weights = torch.where(
        (ahead >= 0).to(x.device), f[:, ahead.clamp(min=0).flatten()].view(-1, S, L), 0.0
    )
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) * weights
    y = torch.einsum("bhtj,bjhd->bthd", scores, v).reshape(B, S, d)
    (y,) = run.ops.linears(y, [p["out_proj.weight"]], [p["out_proj.bias"]])
    return y, (last, k[:, -cfg.max_length :], v[:, -cfg.max_length :])
