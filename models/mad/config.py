"""Sizes of one MAD candidate: checked, and read from and written to a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from mlxhog.config import plugins
from mlxhog.errors import ConfigError
from mlxhog.models.fields import MOST_LAYERS, check_most, check_positive, doc, read
from mlxhog.models.mad import layers as layers_
from mlxhog.models.mad.layer import Layer

BACKBONES = ("language-model", "autoencoder")
POSITIONS = ("none", "learned", "sincos")

SPELLINGS = {"max_position_embeddings": "max_length"}
"""Names of fields in an export: transformers takes `max_length` for an option of `generate`."""


@dataclass(frozen=True, kw_only=True)
class MADConfig:
    """One model. Equal configs are the same model; `layers` is flat and has every number.

    Attributes:
        vocab_size: V.
        hidden_size: d.
        layers: one item is one residual layer.
        max_length: longest sequence; position tables and long filters are made for it.
        norm_eps: epsilon of every RMSNorm.
        position: kind of the position vectors that are added to the embedding.
        backbone: "autoencoder" computes every output from the vector of the last position only.
        bos_token_id: the token that begins a document, if there is one.
        extra: fields of a config.json that are not read here; they are written back.

    Raises:
        ConfigError: a size is impossible, or a layer cannot be built at this width.
    """

    vocab_size: int = field(metadata=doc("rows of the embedding; a run takes its tokenizer's"))
    hidden_size: int = field(metadata=doc("width of the residual stream"))
    layers: tuple[Layer, ...] = field(metadata=doc("one item is one residual layer"))
    max_length: int = field(default=1024, metadata=doc("longest sequence"))
    norm_eps: float = field(default=1e-6, metadata=doc("added to the mean square in norms"))
    position: str = field(
        default="none", metadata=doc("or learned, sincos: added to the embedding")
    )
    backbone: str = field(default="language-model", metadata=doc("or autoencoder, for a MAD task"))
    bos_token_id: int | None = field(
        default=None, metadata=doc("begins a document; a run takes its tokenizer's")
    )
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built; every message has the way out."""
        for name in ("vocab_size", "hidden_size", "max_length", "norm_eps"):
            check_positive(name, getattr(self, name))
        check_most("hidden_size", self.hidden_size)
        check_most("layers", len(self.layers), MOST_LAYERS)
        if not self.layers:
            raise ConfigError("the model has no layers; list some, such as [mlstm, swiglu]")
        for name, choices in (("position", POSITIONS), ("backbone", BACKBONES)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        for number, layer in enumerate(self.layers):
            try:
                layer.check(self.hidden_size)
            except ConfigError as error:
                raise ConfigError(f"layer {number} ({layer.name}): {error}") from error

    @property
    def model_type(self) -> str:
        """The family's name."""
        return "mad"

    @property
    def num_hidden_layers(self) -> int:
        """Number of residual layers."""
        return len(self.layers)

    @property
    def tie_word_embeddings(self) -> bool:
        """Never: embedding and head are two parameters."""
        return False

    @property
    def output_logit_soft_cap(self) -> float | None:
        """Logits have no bound."""
        return None

    @property
    def reset_at_document_boundaries(self) -> bool:
        """Never: sequences are independent rows."""
        return False

    @property
    def bounded_parts(self) -> tuple[str, ...]:
        """The parts that are made for `max_length` positions, by name."""
        positions = () if self.position == "none" else (f"position {self.position}",)
        layers = (layer.name for layer in self.layers if getattr(layer, "bounded", False))
        return tuple(dict.fromkeys((*positions, *layers)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, strict: bool = False) -> Self:
        """Read the result of `to_dict`.

        Args:
            data: field -> value, from a config.json or from YAML.
            strict: refuse unknown fields (YAML written by hand) instead of keeping them.

        Raises:
            ConfigError: a field is unknown, missing or of the wrong type.
        """
        data = {key: value for key, value in data.items() if key != "model_type"}
        readers = {"layers": _layers}
        values, extra = read(cls, data, strict=strict, spellings=SPELLINGS, readers=readers)
        return cls(**values, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The fields of a config.json."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        extra = values.pop("extra")
        values["layers"] = [
            layers_.to_dict(layer) for layer in layers_.at_width(self.layers, self.hidden_size)
        ]
        files = plugins.remembered(self.layers)
        remembered = {plugins.KEY: files} if files else {}
        return {**extra, "model_type": self.model_type, **values, **remembered}


def _layers(value: object) -> tuple[Layer, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"layers is {value!r}; give a list such as [mlstm, swiglu]")
    layers = []
    for item in value:
        if not isinstance(item, str | dict):
            raise ConfigError(f"layers holds {item!r}; write a name, or {{type: mlstm, heads: 4}}")
        numbers = {"type": item} if isinstance(item, str) else dict(item)
        layers.append(layers_.make(str(numbers.pop("type", "")), numbers))
    return tuple(layers)
