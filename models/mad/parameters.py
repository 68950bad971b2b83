"""The parameters of a whole candidate, and the numbers it keeps while it reads a sequence."""

from __future__ import annotations

from dataclasses import replace

from mlxhog.models.mad.config import MADConfig
from mlxhog.models.spec import ParamSpec

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

    The wrapper draws embeddings, the head and the decoder; every layer says how its own begin.
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
    found.append(ParamSpec(HEAD, (V, d), "normal:0.02", decay=True, product=True))
    found.append(ParamSpec(HEAD_BIAS, (V,), "zeros"))
    return {spec.name: spec for spec in found}


def param_count(cfg: MADConfig) -> int:
    """Number of elements of all parameters."""
    return sum(spec.size for spec in param_spec(cfg).values())


def state_sizes(cfg: MADConfig, length: int) -> list[dict[str, int]]:
    """Numbers kept per sequence after `length` tokens, of every layer by part."""
    return [dict(layer.state(cfg.hidden_size, length)) for layer in cfg.layers]
