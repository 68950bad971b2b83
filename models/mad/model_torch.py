"""A MAD candidate in PyTorch: layers between their norms and residuals, decoder and positions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layer import twin
from mlxhog.models.mad.parameters import OUT_NORM, POSITION, decoder_params, layer_params
from mlxhog.models.mad.positions import sincos

Params = Mapping[str, Tensor]
State = Sequence[tuple[Tensor, ...]]
"""What every layer keeps, then ((B,) int64,), the number of positions read."""


def init_state(cfg: MADConfig, B: int) -> State:
    """Return the state before the first token of B sequences."""
    layers = [
        tuple(twin(type(layer), "torch").init_state(layer, cfg.hidden_size, B))
        for layer in cfg.layers
    ]
    return [*layers, (torch.zeros(B, dtype=torch.int64),)]


def blocks(
    cfg: MADConfig, params: Params, x: Tensor, state: State | None, run: Pass[Tensor]
) -> tuple[Tensor, State]:
    """From the embedded tokens (B, S, d) to the final norm, and the state after the last."""
    B, S, _ = x.shape
    read = torch.zeros(B, dtype=torch.int64, device=x.device) if state is None else state[-1][0]
    x = _placed(cfg, params, x, read)
    new_state: list[tuple[Tensor, ...]] = []
    for number, (layer, p) in enumerate(zip(cfg.layers, layer_params(cfg, params), strict=True)):
        u = run.ops.rms_norm(x, p["norm.weight"], cfg.norm_eps)
        before = None if state is None else state[number]
        y, after = twin(type(layer), "torch").forward(layer, cfg, p, u, before, run)
        x = x + y
        new_state.append(tuple(after))
        run.note(x)
    if cfg.backbone == "autoencoder":
        x = _decoded(cfg, params, x, run)
    x = run.ops.rms_norm(x, params[OUT_NORM], cfg.norm_eps)
    run.note(x)
    return x, [*new_state, (read + S,)]


def _placed(cfg: MADConfig, params: Params, x: Tensor, read: Tensor) -> Tensor:
    """Add the positions' vectors, where the model has some."""
    if cfg.position == "none":
        return x
    at = read[:, None] + torch.arange(x.shape[1], device=x.device)
    if cfg.position == "learned":
        return x + params[POSITION][at]
    table = torch.from_numpy(sincos(cfg.max_length, cfg.hidden_size)).to(x.device)
    return x + table[at]


def _decoded(cfg: MADConfig, params: Params, x: Tensor, run: Pass[Tensor]) -> Tensor:
    """Answer every position from the last one's vector and the position's place alone."""
    places = torch.from_numpy(sincos(x.shape[1], cfg.hidden_size)).to(x.device)
    x = x[:, -1:] + places
    for p in decoder_params(cfg, params):
        u = run.ops.rms_norm(x, p["norm.weight"], cfg.norm_eps)
        (u,) = run.ops.linears(u, [p["linear.weight"]], [p["linear.bias"]])
        x = run.ops.activate(u, "gelu")
        run.note(x)
    return x
