"""A candidate: its parameters, its forward pass over either framework, and its reference in NumPy.

The package's docstring has the equations, `layers/` those of every layer. `params` maps every name
of `param_spec(cfg)` to a float32 array of that shape. All functions are pure: they write no input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, did_you_mean, shown
from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.spec import ParamSpec

T = TypeVar("T")
State = Sequence[tuple[Array, ...]]
"""The state of every layer, then ((B,) int32,), the number of positions that were read."""

EMBEDDING = "embedding.weight"
POSITION = "position.weight"
OUT_NORM = "out_norm.weight"
HEAD = "head.weight"
HEAD_BIAS = "head.bias"
DECODER = "decoder"
DECODER_LAYERS = 2


def layer_name(number: int) -> str:
    """Prefix of the parameters of layer `number`, counted from 0."""
    return f"layers.{number}"


def param_spec(cfg: MADConfig) -> dict[str, ParamSpec]:
    """Declare every parameter in the order of use: matrices decay, but not the embedding.

    This module initialises embeddings and the decoder; every layer initialises its own parameters.
    """
    d, V = cfg.hidden_size, cfg.vocab_size
    specs = [ParamSpec(EMBEDDING, (V, d), "normal:0.02", kind="rows")]
    if cfg.position == "learned":
        specs.append(ParamSpec(POSITION, (cfg.max_length, d), "normal:0.02"))
    for number, layer in enumerate(cfg.layers):
        p = layer_name(number)
        specs.append(ParamSpec(f"{p}.norm.weight", (d,), "ones"))
        specs += [replace(spec, name=f"{p}.{spec.name}") for spec in layer.param_spec(d)]
    if cfg.backbone == "autoencoder":
        for number in range(DECODER_LAYERS):
            p = f"{DECODER}.{number}"
            specs.append(ParamSpec(f"{p}.norm.weight", (d,), "ones"))
            specs.append(
                ParamSpec(f"{p}.linear.weight", (d, d), "normal:0.02", decay=True, product=True)
            )
            specs.append(ParamSpec(f"{p}.linear.bias", (d,), "zeros"))
    specs.append(ParamSpec(OUT_NORM, (d,), "ones"))
    # The auto-encoder draws its linear maps; the language model's head begins as torch.nn.Linear.
    is_autoencoder = cfg.backbone == "autoencoder"
    uniform = f"uniform:{1 / math.sqrt(d)!r}"
    head = "normal:0.02" if is_autoencoder else uniform
    specs.append(ParamSpec(HEAD, (V, d), head, decay=True, product=True))
    specs.append(ParamSpec(HEAD_BIAS, (V,), "zeros" if is_autoencoder else uniform))
    return {spec.name: spec for spec in specs}


class LayerParams(dict[str, T]):
    """Parameters of one layer under its own names; an unknown name is a ConfigError.

    Attributes:
        layer: name of the layer.
    """

    layer: str

    def __missing__(self, name: str) -> T:
        """Refuse a name that a layer of the user's own reads and does not declare.

        Raises:
            ConfigError: the message names the layer, the name, and the declared names.
        """
        declared = [own for own in self if own != "norm.weight"]
        raise ConfigError(
            f"layer {self.layer} reads the parameter {shown(name)}, which its param_spec does not "
            f"declare (it declares {', '.join(declared) or 'none'}); declare it there, or read "
            f"another one{did_you_mean(name, declared)}"
        )


def layer_params(cfg: MADConfig, params: Mapping[str, T]) -> list[dict[str, T]]:
    """Return the parameters of every layer under its own names, the norm's among them."""
    every: list[dict[str, T]] = []
    for layer, names in zip(cfg.layers, _names(cfg)[0], strict=True):
        own = LayerParams((own, params[name]) for own, name in names)
        own.layer = layer.name
        every.append(own)
    return every


def decoder_params(cfg: MADConfig, params: Mapping[str, T]) -> list[dict[str, T]]:
    """Return the parameters of every layer of the decoder under its own names."""
    return [{own: params[name] for own, name in names} for names in _names(cfg)[1]]


Names = tuple[tuple[str, str], ...]
"""Pairs of names of a layer's parameters: in the layer, and in the whole model."""


@lru_cache  # every forward pass asks
def _names(cfg: MADConfig) -> tuple[tuple[Names, ...], tuple[Names, ...]]:
    """Names of the layers' parameters, and of those of the decoder's."""
    spec = param_spec(cfg)

    def under(prefix: str) -> Names:
        names = (name for name in spec if name.startswith(f"{prefix}."))
        return tuple((name[len(prefix) + 1 :], name) for name in names)

    decoder = range(DECODER_LAYERS if cfg.backbone == "autoencoder" else 0)
    return (
        tuple(under(layer_name(number)) for number in range(cfg.num_hidden_layers)),
        tuple(under(f"{DECODER}.{number}") for number in decoder),
    )


def param_count(cfg: MADConfig) -> int:
    """Number of elements of all parameters."""
    return sum(spec.size for spec in param_spec(cfg).values())


def state_sizes(cfg: MADConfig, length: int) -> list[dict[str, int]]:
    """Numbers kept per sequence after `length` tokens, of every layer by part."""
    return [dict(layer.state(cfg.hidden_size, length)) for layer in cfg.layers]


def init_state(cfg: MADConfig, B: int, xp: Arrays[Array]) -> State:
    """Return the state before the first token of B sequences."""
    layers = [tuple(layer.init_state(cfg.hidden_size, B, xp)) for layer in cfg.layers]
    return [*layers, (xp.zeros((B,), "int32"),)]


def blocks(
    cfg: MADConfig, params: Mapping[str, Array], x: Array, state: State | None, run: Pass[Array]
) -> tuple[Array, State]:
    """Compute from the embedded tokens (B, S, d) to the final norm; return the new state too."""
    B, S, _ = x.shape
    count = run.ops.xp.zeros((B,), "int32", like=x) if state is None else state[-1][0]
    x = _with_positions(cfg, params, x, count, run.ops.xp)
    new_state: list[tuple[Array, ...]] = []
    for number, (layer, p) in enumerate(zip(cfg.layers, layer_params(cfg, params), strict=True)):
        u = run.ops.rms_norm(x, p["norm.weight"], cfg.norm_eps)
        before = None if state is None else state[number]
        y, after = layer.forward(cfg, p, u, before, run)
        x = x + y
        new_state.append(tuple(after))
        run.note(x)
    if cfg.backbone == "autoencoder":
        x = _decoded(cfg, params, x, run)
    x = run.ops.rms_norm(x, params[OUT_NORM], cfg.norm_eps)
    run.note(x)
    return x, [*new_state, (count + S,)]


def _with_positions(
    cfg: MADConfig, params: Mapping[str, Array], x: Array, count: Array, xp: Arrays[Array]
) -> Array:
    """Add the position vectors, if the model has them."""
    if cfg.position == "none":
        return x
    at = count[:, None] + xp.arange(0, x.shape[1], like=x)
    if cfg.position == "learned":
        return x + params[POSITION][at]
    return x + xp.from_numpy(sincos(cfg.max_length, cfg.hidden_size), like=x)[at]


def _decoded(cfg: MADConfig, params: Mapping[str, Array], x: Array, run: Pass[Array]) -> Array:
    """Compute every output from the vector of the last position and the output's position only."""
    x = x[:, -1:] + run.ops.xp.from_numpy(sincos(x.shape[1], cfg.hidden_size), like=x)
    for p in decoder_params(cfg, params):
        u = run.ops.rms_norm(x, p["norm.weight"], cfg.norm_eps)
        (u,) = run.ops.linears(u, [p["linear.weight"]], [p["linear.bias"]])
        x = run.ops.activate(u, "gelu")
        run.note(x)
    return x


@lru_cache(maxsize=16)
def sincos(length: int, d: int) -> NDArray[np.float32]:
    """Return the table (length, d) float32: sin at even, cos at odd columns, wavelengths to 1e4.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    at = np.arange(length)[:, None] / 1e4 ** (np.arange(0, d, 2)[None, :] / d)
    table = np.empty((length, d), np.float32)
    table[:, 0::2] = np.sin(at)
    table[:, 1::2] = np.cos(at[:, : d // 2])
    return table
