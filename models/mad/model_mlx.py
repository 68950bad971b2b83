"""A MAD candidate in MLX: layers between their norms and residuals, decoder and positions."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
from mlx.core import array

from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layer import twin
from mlxhog.models.mad.parameters import OUT_NORM, POSITION, decoder_params, layer_params
from mlxhog.models.mad.positions import sincos

Params = Mapping[str, array]
State = Sequence[tuple[array, ...]]
"""What every layer keeps, then ((B,) int32,), the number of positions read."""


def init_state(cfg: MADConfig, B: int) -> State:
    """Return the state before the first token of B sequences."""
    layers = [
        tuple(twin(type(layer), "mlx").init_state(layer, cfg.hidden_size, B))
        for layer in cfg.layers
    ]
    return [*layers, (mx.zeros(B, mx.int32),)]


def blocks(
    cfg: MADConfig, params: Params, x: array, state: State | None, run: Pass[array]
) -> tuple[array, State]:
    """From the embedded tokens (B, S, d) to the final norm, and the state after the last."""
    B, S, _ = x.shape
    read = mx.zeros(B, mx.int32) if state is None else state[-1][0]
    x = _placed(cfg, params, x, read)
    new_state: list[tuple[array, ...]] = []
    for number, (layer, p) in enumerate(zip(cfg.layers, layer_params(cfg, params), strict=True)):
        u = run.ops.rms_norm(x, p["norm.weight"], cfg.norm_eps)
        before = None if state is None else state[number]
        y, after = twin(type(layer), "mlx").forward(layer, cfg, p, u, before, run)
        x = x + y
        new_state.append(tuple(after))
        run.note(x)
    if cfg.backbone == "autoencoder":
        x = _decoded(cfg, params, x, run)
    x = run.ops.rms_norm(x, params[OUT_NORM], cfg.norm_eps)
    run.note(x)
    return x, [*new_state, (read + S,)]


def _placed(cfg: MADConfig, params: Params, x: array, read: array) -> array:
    """Add the positions' vectors, where the model has some."""
    if cfg.position == "none":
        return x
    at = read[:, None] + mx.arange(x.shape[1])
    if cfg.position == "learned":
        return x + params[POSITION][at]
    table = mx.array(sincos(cfg.max_length, cfg.hidden_size))
    return x + table[at]


def _decoded(cfg: MADConfig, params: Params, x: array, run: Pass[array]) -> array:
    """Answer every position from the last one's vector and the position's place alone."""
    places = mx.array(sincos(x.shape[1], cfg.hidden_size))
    x = x[:, -1:] + places
    for p in decoder_params(cfg, params):
        u = run.ops.rms_norm(x, p["norm.weight"], cfg.norm_eps)
        (u,) = run.ops.linears(u, [p["linear.weight"]], [p["linear.bias"]])
        x = run.ops.activate(u, "gelu")
        run.note(x)
    return x
