"""The small layers of both kinds of blocks in PyTorch, by the names of their parameters."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.xlstm_v1 import NORM_EPS, XLSTMV1Config

Params = Mapping[str, Tensor]


def norm(params: Params, name: str, x: Tensor, run: Pass[Tensor]) -> Tensor:
    """LayerNorm with the scale 1 + `name`; (..., d)."""
    return run.ops.layer_norm(x, 1.0 + params[f"{name}.weight"], NORM_EPS)


def linears(
    params: Params, names: Sequence[str], x: Tensor, run: Pass[Tensor]
) -> tuple[Tensor, ...]:
    """The linear maps `names` of one x, with their biases where they have any; (..., out) each."""
    weights = [params[f"{name}.weight"] for name in names]
    return run.ops.linears(x, weights, [params.get(f"{name}.bias") for name in names])


def halves(params: Params, name: str, x: Tensor, run: Pass[Tensor]) -> tuple[Tensor, Tensor]:
    """The first and the second half of the linear map `name`, each an array of its own."""
    w, b = params[f"{name}.weight"], params.get(f"{name}.bias")
    first, second = run.ops.linears(x, w.chunk(2), None if b is None else b.chunk(2))
    return first, second


def block_diagonals(
    params: Params, names: Sequence[str], x: Tensor, run: Pass[Tensor]
) -> tuple[Tensor, ...]:
    """The block-diagonal maps `names` of one x, with their biases where they have any."""
    weights = [params[f"{name}.weight"] for name in names]
    return run.ops.block_diagonal(x, weights, [params.get(f"{name}.bias") for name in names])


def conv(
    params: Params, p: str, x: Tensor, state: Tensor | None, run: Pass[Tensor]
) -> tuple[Tensor, Tensor]:
    """The causal convolution of x (B, S, C) through silu, and the inputs the next one needs."""
    w, b = params[f"{p}.conv1d.conv.weight"], params[f"{p}.conv1d.conv.bias"]
    return run.ops.causal_conv(x, w, b, state=state, starts=run.starts, silu=True)


def drop(site: str, x: Tensor, run: Pass[Tensor]) -> Tensor:
    """Dropout at `site`, where this pass has a mask for it."""
    mask = None if run.masks is None else run.masks.get(site)
    return x if mask is None else x * mask.reshape(x.shape)


def ffn(cfg: XLSTMV1Config, params: Params, p: str, u: Tensor, run: Pass[Tensor]) -> Tensor:
    """The gated feed-forward layer; u and result (B, S, d)."""
    assert cfg.feedforward is not None
    gate, up = halves(params, f"{p}.proj_up", u, run)
    y = run.ops.glu(gate, up, cfg.feedforward.act_fn)
    (y,) = linears(params, (f"{p}.proj_down",), y, run)
    return drop(p, y, run)
