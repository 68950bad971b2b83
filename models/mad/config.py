"""MAD candidates: fields, list of layers, and what only they have: positions and a decoder.

    x = E[tokens] + P[positions]                               (B, S, d), P where there is one
    x = x + layer(RMSNorm(x))                                  for every layer of the flat list
    logits = RMSNorm(x) H^T + b                                language model

    z = x[:, last]                                             auto-encoder, for compression
    x = z + P'                                                 (B, S, d), P' sines and cosines
    x = GELU(W RMSNorm(x) + b)                                 twice
    logits = RMSNorm(x) H^T + b

Sources: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures, arXiv:2403.17844;
athms/mad-lab.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

import mlxhog.models.mad.layers as layers_
from mlxhog.config import plugins
from mlxhog.errors import ConfigError
from mlxhog.models.fields import (
    MOST_LAYERS,
    MOST_WIDTH,
    anything,
    check_fields,
    check_most,
    doc,
    one_of,
    read,
)
from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.layer import Layer, Params, Sizes, State, bound
from mlxhog.models.mad.sequence import read_layers
from mlxhog.models.model import Layout, Part
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.spec import ParamSpec

BACKBONES = ("language-model", "autoencoder")
POSITIONS = ("none", "learned", "sincos")
EMBEDDING, HEAD, HEAD_BIAS = "embedding.weight", "head.weight", "head.bias"

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

    model_type: ClassVar[str] = "mad"
    title: ClassVar[str] = "MAD candidate"
    untied_head: ClassVar[str] = HEAD
    tie_word_embeddings: ClassVar[bool] = False
    output_logit_soft_cap: ClassVar[None] = None
    reset_at_document_boundaries: ClassVar[bool] = False  # sequences are independent rows

    vocab_size: int = field(metadata=doc("rows of the embedding; a run takes its tokenizer's"))
    hidden_size: int = field(metadata=doc("width of the residual stream", most=MOST_WIDTH))
    layers: tuple[Layer, ...] = field(metadata=doc("one item is one residual layer"))
    max_length: int = field(default=1024, metadata=doc("longest sequence"))
    norm_eps: float = field(default=1e-6, metadata=doc("added to the mean square in norms"))
    position: str = field(
        default="none",
        metadata=doc("or learned, sincos: added to the embedding", check=one_of(*POSITIONS)),
    )
    backbone: str = field(
        default="language-model",
        metadata=doc("or autoencoder, for a MAD task", check=one_of(*BACKBONES)),
    )
    bos_token_id: int | None = field(
        default=None,
        metadata=doc("begins a document; a run takes its tokenizer's", check=anything),
    )
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built; every message has the way out."""
        check_fields(self)
        check_most("layers", len(self.layers), MOST_LAYERS)
        if not self.layers:
            raise ConfigError("the model has no layers; list some, such as [mlstm, swiglu]")
        for number, layer in enumerate(self.layers):
            try:
                layer.check(self.hidden_size)
            except ConfigError as error:
                raise ConfigError(f"layer {number} ({layer.name}): {error}") from error

    @property
    def num_hidden_layers(self) -> int:
        """Number of residual layers."""
        return len(self.layers)

    @cached_property
    def layout(self) -> Layout:
        """The model as a list of layers; every layer initialises its own parameters."""
        d, V = self.hidden_size, self.vocab_size
        # The auto-encoder draws its linear maps; another head begins as torch.nn.Linear.
        decodes = self.backbone == "autoencoder"
        weight, bias = ("normal:0.02", "zeros") if decodes else (bound(d), bound(d))
        positions = Positions(learned=self.position == "learned", length=self.max_length)
        return Layout(
            embedding=ParamSpec(EMBEDDING, (V, d), "normal:0.02", kind="rows"),
            positions=None
            if self.position == "none"
            else Part(name="position", layer=positions, d=d),
            blocks=tuple(
                (
                    Part(
                        name=layer_name(number), norm=f"{layer_name(number)}.norm", layer=layer, d=d
                    ),
                )
                for number, layer in enumerate(self.layers)
            ),
            decoder=Part(name="decoder", layer=Decoder(), d=d) if decodes else None,
            out_norm=(ParamSpec("out_norm.weight", (d,), "ones"),),
            head=(
                ParamSpec(HEAD, (V, d), weight, decay=True, product=True),
                ParamSpec(HEAD_BIAS, (V,), bias),
            ),
        )

    @property
    def bounded_parts(self) -> tuple[str, ...]:
        """The parts that are made for `max_length` positions, by name."""
        positions = () if self.position == "none" else (f"position {self.position}",)
        layers = (layer.name for layer in self.layers if getattr(layer, "bounded", False))
        return tuple(dict.fromkeys((*positions, *layers)))

    def state_sizes(self, length: int) -> list[dict[str, int]]:
        """Numbers kept per sequence after `length` tokens, of every layer by part."""
        return [dict(layer.state(self.hidden_size, length)) for layer in self.layers]

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
        readers = {"layers": lambda value: read_layers("layers", value)}
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


def layer_name(number: int) -> str:
    """Prefix of the parameters of layer `number`, counted from 0."""
    return f"layers.{number}"


@dataclass(frozen=True, kw_only=True)
class Positions(Layer):
    """Adds position vectors, learned ones or sines; its state is the positions read, (B,) int32."""

    name = "position"
    about = "position vectors"

    learned: bool
    length: int

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the table, if it is learned."""
        return [ParamSpec("weight", (self.length, d), "normal:0.02")] * self.learned

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return zeros."""
        return (xp.zeros((B,), "int32"),)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Add the vectors of the positions of x (B, S, d)."""
        (B, S, d), xp = x.shape, run.ops.xp
        count = xp.zeros((B,), "int32", like=x) if state is None else state[0]
        at = count[:, None] + xp.arange(0, S, like=x)
        P = p["weight"] if self.learned else xp.from_numpy(sincos(self.length, d), like=x)
        return x + P[at], (count + S,)


@dataclass(frozen=True, kw_only=True)
class Decoder(Layer):
    """Computes every output from the vector of the last position and the output's position only."""

    name = "decoder"
    about = "decoder of the auto-encoder"
    count = 2

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare its linear maps and norms."""
        for n in range(self.count):
            yield ParamSpec(f"{n}.norm.weight", (d,), "ones")
            weight = f"{n}.linear.weight"
            yield ParamSpec(weight, (d, d), "normal:0.02", decay=True, product=True)
            yield ParamSpec(f"{n}.linear.bias", (d,), "zeros")

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Return x (B, S, d) of its last position."""
        x = x[:, -1:] + run.ops.xp.from_numpy(sincos(x.shape[1], cfg.hidden_size), like=x)
        for n in range(self.count):
            u = run.ops.rms_norm(x, p[f"{n}.norm.weight"], cfg.norm_eps)
            x = run.ops.activate(run.linear(u, p, f"{n}.linear"), "gelu")
            run.note(x)
        return x, ()


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
