"""The parameters of a whole candidate, and the numbers it keeps while it reads a sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.spec import ParamSpec

T = TypeVar("T")

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

    The wrapper draws embeddings and the decoder; every layer says how its own begin.
    """
    d, V = cfg.hidden_size, cfg.vocab_size
    found = [ParamSpec(EMBEDDING, (V, d), "normal:0.02", kind="rows")]
    if cfg.position == "learned":
        found.append(ParamSpec(POSITION, (cfg.max_length, d), "normal:0.02"))
    for number, layer in enumerate(cfg.layers):
        p = layer_name(number)
        found.append(ParamSpec(f"{p}.norm.weight", (d,), "ones"))
        found += [replace(spec, name=f"{p}.{spec.name}") for spec in layer.param_spec(d)]
    if cfg.backbone == "autoencoder":
        for number in range(DECODER_LAYERS):
            p = f"{DECODER}.{number}"
            found.append(ParamSpec(f"{p}.norm.weight", (d,), "ones"))
            found.append(
                ParamSpec(f"{p}.linear.weight", (d, d), "normal:0.02", decay=True, product=True)
            )
            found.append(ParamSpec(f"{p}.linear.bias", (d,), "zeros"))
    found.append(ParamSpec(OUT_NORM, (d,), "ones"))
    # The auto-encoder draws its linear maps; the language model's head begins as torch.nn.Linear.
    drawn = cfg.backbone == "autoencoder"
    uniform = f"uniform:{1 / math.sqrt(d)!r}"
    head = "normal:0.02" if drawn else uniform
    found.append(ParamSpec(HEAD, (V, d), head, decay=True, product=True))
    found.append(ParamSpec(HEAD_BIAS, (V,), "zeros" if drawn else uniform))
    return {spec.name: spec for spec in found}


def layer_params(cfg: MADConfig, params: Mapping[str, T]) -> list[dict[str, T]]:
    """Return the parameters of every layer under its own names, the norm's among them."""
    return _under(_names(cfg)[0], params)


def decoder_params(cfg: MADConfig, params: Mapping[str, T]) -> list[dict[str, T]]:
    """Return the parameters of every layer of the decoder under its own names."""
    return _under(_names(cfg)[1], params)


Names = tuple[tuple[str, str], ...]
"""Of one layer's parameters: its own, and that of the whole model."""


def _under(layers: tuple[Names, ...], params: Mapping[str, T]) -> list[dict[str, T]]:
    return [{own: params[name] for own, name in names} for names in layers]


@lru_cache  # every forward pass asks
def _names(cfg: MADConfig) -> tuple[tuple[Names, ...], tuple[Names, ...]]:
    """Names of the layers' parameters, and of those of the decoder's."""
    spec = param_spec(cfg)

    def under(prefix: str) -> Names:
        found = [name for name in spec if name.startswith(f"{prefix}.")]
        return tuple((name[len(prefix) + 1 :], name) for name in found)

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
