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

In a YAML file `layers` is a line such as "(mlstm swiglu)*7 slstm swiglu", see `sequence.py`, or a
list of lines and of layers with their numbers, `{type: slstm, heads: 2}`; `plugin` has files of
layers of your own, see `config.plugins`. The other fields have defaults.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

import mlxhog.models.layers as layers_
from mlxhog.config import plugins
from mlxhog.config.options import option
from mlxhog.errors import ConfigError
from mlxhog.models.fields import MAX_WIDTH, custom, positive
from mlxhog.models.layers.layer import ForwardContext, Layer, Params, Shapes, State, linear_params
from mlxhog.models.mad.sequence import canonical, check_count, read_layers
from mlxhog.models.model import Block, BlockStack, ModelConfig, ResidualBlock
from mlxhog.models.ops.arrays import Array
from mlxhog.models.spec import ParamSpec, bound

VOCABULARY = 320  # bytes, BOS at 256, padded
POSITIONS = ("none", "learned", "sincos")
EMBEDDING, HEAD, HEAD_BIAS = "embedding.weight", "head.weight", "head.bias"

SPELLINGS = {"max_position_embeddings": "max_length"}
"""Names of fields in an export: transformers takes `max_length` for an option of `generate`."""


@dataclass(frozen=True, kw_only=True)
class MADConfig(ModelConfig):
    """One model. Equal configs are the same model; `layers` is flat and has every number.

    Position tables and long filters are made for `max_length`. The backbone "autoencoder" computes
    every output from the vector of the last position only. Sequences are independent rows.
    """

    model_type: ClassVar[str] = "mad"
    title: ClassVar[str] = "MAD candidate"
    untied_head: ClassVar[str] = HEAD
    in_xlstm: ClassVar[bool] = False
    aliases: ClassVar[Mapping[str, str]] = SPELLINGS | {"dim": "hidden_size"}

    vocab_size: int = positive("rows of the embedding; a task and a run bring theirs", VOCABULARY)
    hidden_size: int = positive("width of the residual stream", 128, high=MAX_WIDTH)
    layers: tuple[Layer, ...] = custom("one item is one residual layer", MISSING, read_layers)
    max_length: int = positive("longest sequence", 1024)
    norm_eps: float = positive("added to the mean square in norms", 1e-6)
    position: str = option("none", "or learned, sincos: added to the embedding", choices=POSITIONS)
    backbone: str = option(
        "language-model",
        "or autoencoder, for a MAD task",
        choices=("language-model", "autoencoder"),
    )

    def __post_init__(self) -> None:
        """Refuse a model that cannot be built; every message has the way out."""
        super().__post_init__()
        check_count(len(self.layers))
        if not self.layers:
            raise ConfigError("the model has no layers; list some, such as [mlstm, swiglu]")
        for number, layer in enumerate(self.layers):
            try:
                layer.check(self.hidden_size)
            except ConfigError as error:
                raise ConfigError(f"layer {number} ({layer.name}): {error}") from error

    @property
    def num_hidden_layers(self) -> int:  # type: ignore[override]  # a field of other families
        """Number of residual layers."""
        return len(self.layers)

    @property
    def own_layers(self) -> tuple[Layer, ...]:  # type: ignore[override]  # of others a constant
        """Layers that may be of a user's file."""
        return self.layers

    @cached_property
    def stack(self) -> BlockStack:
        """The model without an adapter; every layer initializes its own parameters."""
        d, V = self.hidden_size, self.vocab_size
        # The auto-encoder draws its linear maps; another head begins as torch.nn.Linear.
        decodes = self.backbone == "autoencoder"
        weight, bias = ("normal:0.02", "zeros") if decodes else (bound(d), bound(d))
        blocks = list[Block]()
        if self.position != "none":
            positions = Positions(learned=self.position == "learned", length=self.max_length)
            blocks.append((ResidualBlock(name="position", layer=positions, d=d),))
        for number, layer in enumerate(self.layers):
            name = layer_name(number)
            inner = f"{name}.{layer.inside}" if layer.inside else name
            blocks.append((ResidualBlock(name=inner, norm=f"{name}.norm", layer=layer, d=d),))
        if decodes:
            blocks.append((ResidualBlock(name="decoder", layer=Decoder(), d=d),))
        return BlockStack(
            embedding=ParamSpec(EMBEDDING, (V, d), "normal:0.02", kind="rows"),
            blocks=tuple(blocks),
            out_norm=(ParamSpec("out_norm.weight", (d,), "ones"),),
            head=(
                ParamSpec(HEAD, (V, d), weight, decay=True, autocast=True),
                ParamSpec(HEAD_BIAS, (V,), bias),
            ),
        )

    def state_sizes(self, length: int) -> list[dict[str, int]]:
        """Numbers kept per sequence after `length` tokens, of every layer by part."""
        return [layer.state(self.hidden_size, length) for layer in self.layers]

    def described(self) -> dict[str, Any]:
        """Return sizes of the model and its parts, as `mlxhog mad show --json` prints them.

        The state is counted after `max_length` tokens.
        """
        parts: dict[str, dict[str, Any]] = {}  # a layer with its norm, or a head
        for spec in self.layout.spec.values():
            path = spec.name.split(".")
            depth = 2 if path[0] == "layers" else 1
            name = ".".join(path[:depth])
            part = parts.setdefault(
                name,
                {"layer": None, "text": name, "kind": "", "numbers": {}, "shapes": {},
                 "params": 0, "state": {}, "grows": False},
            )  # fmt: skip
            part["shapes"][".".join(path[depth:])] = spec.shape
            part["params"] += math.prod(spec.shape)
        sizes = (self.state_sizes(n) for n in (self.max_length, self.max_length + 1))
        for number, (layer, now, later) in enumerate(zip(self.layers, *sizes, strict=True)):
            parts[layer_name(number)] |= {
                "layer": number, "text": canonical([layer]), "kind": layer.kind,
                "numbers": layers_.to_dict(layer), "state": now, "grows": now != later,
            }  # fmt: skip
        return {
            "layers": canonical(self.layers),
            "dim": self.hidden_size,
            "vocab_size": self.vocab_size,
            "seq_len": self.max_length,
            "position": self.position,
            "backbone": self.backbone,
            "parts": [*parts.values()],
            "params": sum(part["params"] for part in parts.values()),
            "state": sum(sum(part["state"].values()) for part in parts.values()),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, strict: bool = False) -> Self:
        """As that of `ModelConfig`; or the file of a layer may not be loaded: `config.plugins`."""
        files = plugins.texts(data.get(plugins.KEY))
        own = {name: value for name, value in data.items() if name != plugins.KEY}
        read = super().from_dict
        return plugins.recalled(files, lambda: read(own, strict=strict), lambda cfg: cfg.layers)

    def to_dict(self) -> dict[str, Any]:
        """The fields of a config.json."""
        layers = layers_.at_width(self.layers, self.hidden_size)
        values = self.values() | {"layers": [layers_.to_dict(layer) for layer in layers]}
        files = plugins.remembered(self.layers)
        remembered = {plugins.KEY: files} if files else {}
        return {**self.extra, "model_type": self.model_type, **values, **remembered}


def layer_name(number: int) -> str:
    """Prefix of the parameters of layer `number`, counted from 0."""
    return f"layers.{number}"


class Positions(Layer):
    """Adds position vectors, learned ones or sines; its state is the positions read."""

    name = "position"

    learned: bool
    length: int

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the table, if it is learned."""
        return [ParamSpec("weight", (self.length, d), "normal:0.02")] * self.learned

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return that of the count of positions."""
        return {"count": [()]}

    def forward(
        self, p: Params, x: Array, state: State, ctx: ForwardContext
    ) -> tuple[Array, State]:
        """Add the vectors of the positions of x (B, S, d)."""
        (B, S, d), xp, (count,) = x.shape, ctx.ops.xp, state
        count = xp.zeros((B,), "int32", like=x) if count is None else count
        at = count[:, None] + xp.arange(0, S, like=x)
        P = p["weight"] if self.learned else xp.from_numpy(sincos(self.length, d), like=x)
        return x + P[at], (count + S,)


class Decoder(Layer):
    """Computes every output from the vector of the last position and the output's position only."""

    name = "decoder"
    count = 2

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare its linear maps and norms."""
        for n in range(self.count):
            yield ParamSpec(f"{n}.norm.weight", (d,), "ones")
            yield from linear_params(d, init="normal:0.02", bias=True, outs={f"{n}.linear": d})

    def forward(
        self, p: Params, x: Array, state: State, ctx: ForwardContext
    ) -> tuple[Array, State]:
        """Return x (B, S, d) of its last position."""
        x = x[:, -1:] + ctx.ops.xp.from_numpy(sincos(*x.shape[1:]), like=x)
        for n in range(self.count):
            u = ctx.ops.rms_norm(x, p[f"{n}.norm.weight"], ctx.norm_eps)
            x = ctx.ops.activate(ctx.linear(u, p, f"{n}.linear"), "gelu")
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
