"""What an architecture consists of: parameters and state of every layer, and of the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlxhog.models.mad import MADConfig, param_spec, state_sizes
from mlxhog.models.mad.layers import to_dict
from mlxhog.models.mad.model import layer_name
from mlxhog.models.mad.sequence import canonical


@dataclass(frozen=True, kw_only=True)
class Part:
    """One layer with its norm, or what is before and after all layers.

    Attributes:
        layer: its number from 0; None for the rest.
        text: canonical text of the layer, or the name of the rest, such as "head".
        kind: "mixer" or "channel"; "" for the rest.
        numbers: every number of the layer.
        shapes: of its parameters, under their own names.
        params: their elements.
        state: numbers kept per sequence, by what they are.
        grows: whether longer sequences keep more.
    """

    layer: int | None
    text: str
    kind: str
    numbers: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    params: int
    state: Mapping[str, int]
    grows: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole model; `layers` is its canonical text, `state` counts after `seq_len` tokens."""

    layers: str
    dim: int
    vocab_size: int
    seq_len: int
    position: str
    backbone: str
    parts: tuple[Part, ...]
    params: int
    state: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes."""
        return asdict(self)


def summarise(cfg: MADConfig, seq_len: int) -> Summary:
    """Count the parameters of a model, and what it keeps after `seq_len` tokens."""
    parts = _parts(cfg, seq_len)
    return Summary(
        layers=canonical(cfg.layers),
        dim=cfg.hidden_size,
        vocab_size=cfg.vocab_size,
        seq_len=seq_len,
        position=cfg.position,
        backbone=cfg.backbone,
        parts=parts,
        params=sum(part.params for part in parts),
        state=sum(sum(part.state.values()) for part in parts),
    )


def _parts(cfg: MADConfig, seq_len: int) -> tuple[Part, ...]:
    """Every part in the order in which the model uses them."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, spec in param_spec(cfg).items():
        words = name.split(".")
        prefix = ".".join(words[: 2 if words[0] == "layers" else 1])
        groups.setdefault(prefix, {})[name.removeprefix(f"{prefix}.")] = spec.shape
    numbers = {layer_name(number): number for number in range(len(cfg.layers))}
    now, later = (state_sizes(cfg, length) for length in (seq_len, seq_len + 1))
    parts = []
    for prefix, shapes in groups.items():
        number = numbers.get(prefix)
        layer = None if number is None else cfg.layers[number]
        parts.append(
            Part(
                layer=number,
                text=prefix if layer is None else canonical([layer]),
                kind="" if layer is None else layer.kind,
                numbers={} if layer is None else to_dict(layer),
                shapes=shapes,
                params=sum(math.prod(shape) for shape in shapes.values()),
                state={} if number is None else now[number],
                grows=number is not None and now[number] != later[number],
            )
        )
    return tuple(parts)
