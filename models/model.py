"""The model: an embedding, a list of blocks, a final norm and a head.

With B batch, S sequence, d = hidden_size, V vocabulary:

    x = E[tokens]                     (B, S, d); rows of n-grams and positions may be added
    x = x + layer(norm(x))            for every part of every block: a mixer, or a channel map
    logits = norm(x) H^T + b          H = E where they are tied; b and this norm may be absent

A family, such as xLSTM Large, is a configuration whose `layout` is that list, under the names of
its checkpoints; every layer has its own equations (`mad/layers/`). norm is RMSNorm with the scale
w, or LayerNorm with the scale 1 + w.

`params` maps every name of `param_spec(cfg)` to a float32 array of that shape. All functions are
pure: they write no input. This module imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

from mlxhog.errors import ConfigError, did_you_mean, shown
from mlxhog.models.forward_pass import Pass
from mlxhog.models.mad.layer import Layer
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.spec import ParamSpec

T = TypeVar("T")
Params = Mapping[str, Array]
State = Sequence[tuple[Array, ...]]
"""A tuple of arrays per block, that of its layers; then that of the positions, if there are any.
The first axis is the batch."""


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
        raise ConfigError(
            f"layer {self.layer} reads the parameter {shown(name)}, which its param_spec does not "
            f"declare (it declares {', '.join(self) or 'none'}); declare it there, or read "
            f"another one{did_you_mean(name, self)}"
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """A layer in its place: x + layer(norm(x)).

    Attributes:
        name: prefix of the layer's parameters, and the site of its dropout.
        layer: the layer.
        d: width of x.
        norm: name of the norm before it; "" where the layer is neither normed nor added.
        dropout: share of units that the layer drops in training.
    """

    name: str
    layer: Layer
    d: int
    norm: str = ""
    dropout: float = 0.0

    @cached_property
    def spec(self) -> list[ParamSpec]:
        """The layer's parameters under their names in the model."""
        own = self.layer.param_spec(self.d)
        return [replace(spec, name=f"{self.name}.{spec.name}") for spec in own]

    def params(self, params: Mapping[str, T]) -> LayerParams[T]:
        """Return the layer's parameters under its own names."""
        start = len(self.name) + 1
        own = LayerParams((spec.name[start:], params[spec.name]) for spec in self.spec)
        own.layer = self.layer.name
        return own

    def init_state(self, B: int, xp: Arrays[Array]) -> tuple[Array, ...]:
        """Return the layer's state before the first position of B sequences."""
        return tuple(self.layer.init_state(self.d, B, xp))


Block = tuple[Part, ...]
"""The parts of a block; only the first may have a state."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A model as a list.

    Attributes:
        embedding: E.
        ngrams: W of the tables of n-grams, if there are any.
        blocks: of the model.
        positions: adds position vectors to the embedded tokens.
        decoder: maps x behind the last block, in place of x.
        norms: the kind of all norms, their initial scale, and whether they have a bias.
        out_norm: parameters of the final norm; none without one.
        head: H, unless it is E, and b, if there is one.
        dropout: share of units of the embedded tokens dropped in training.
    """

    embedding: ParamSpec
    blocks: tuple[Block, ...]
    out_norm: tuple[ParamSpec, ...]
    head: tuple[ParamSpec, ...]
    ngrams: tuple[ParamSpec, ...] = ()
    positions: Part | None = None
    decoder: Part | None = None
    norms: tuple[Literal["rms", "layer"], str, bool] = ("rms", "ones", False)
    dropout: float = 0.0

    @cached_property
    def spec(self) -> dict[str, ParamSpec]:
        """Every parameter by its name, in the order of use."""
        specs = [self.embedding, *self.ngrams]
        for part in self.parts():
            if part.norm:
                specs += self.norm_spec(part.norm, part.d, bias=self.norms[2])
            specs += part.spec
        return {spec.name: spec for spec in (*specs, *self.out_norm, *self.head)}

    def parts(self) -> Iterator[Part]:
        """Every part, in the order of use."""
        inner = [part for block in self.blocks for part in block]
        yield from (part for part in (self.positions, *inner, self.decoder) if part is not None)

    def norm_spec(self, name: str, d: int, *, bias: bool) -> list[ParamSpec]:
        """Declare a norm over width d."""
        scale = ParamSpec(f"{name}.weight", (d,), self.norms[1])
        return [scale, ParamSpec(f"{name}.bias", (d,), "zeros")] if bias else [scale]


class ModelConfig(Protocol):
    """Sizes and constants of one model; frozen, picklable, checked when it is made."""

    @property
    def model_type(self) -> str:
        """The family, a key of `families.FAMILIES`."""

    @property
    def title(self) -> str:
        """Name of the family for people."""

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding."""

    @property
    def hidden_size(self) -> int:
        """d, width of the residual stream."""

    @property
    def max_length(self) -> int:
        """Longest sequence, if positions or layers are made for one."""

    @property
    def norm_eps(self) -> float:
        """Epsilon of every norm."""

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the embedding."""

    @property
    def untied_head(self) -> str:
        """Name of H in a model in which it is not the embedding."""

    @property
    def output_logit_soft_cap(self) -> float | None:
        """Bound of the logits; None if they have none."""

    @property
    def reset_at_document_boundaries(self) -> bool:
        """Whether the memory is reset at every `bos_token_id`."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a document."""

    @property
    def layout(self) -> Layout:
        """The model as a list of layers."""

    def to_dict(self) -> dict[str, Any]:
        """The fields of a config.json."""


def state_shapes(cfg: ModelConfig) -> list[tuple[tuple[int, ...], ...]]:
    """Shapes of the parts of every block's state before the first position, for one sequence."""
    return [
        tuple(
            tuple(shape)
            for part in block
            for shapes in part.layer.state_shapes(part.d, 0).values()
            for shape in shapes
        )
        for block in cfg.layout.blocks
    ]


def init_state(cfg: ModelConfig, B: int, xp: Arrays[Array]) -> State:
    """Return the state before the first token of B sequences."""
    states = [
        tuple(array for part in block for array in part.init_state(B, xp))
        for block in cfg.layout.blocks
    ]
    positions = cfg.layout.positions
    return states if positions is None else [*states, positions.init_state(B, xp)]


def blocks(
    cfg: ModelConfig, params: Params, x: Array, state: State | None, run: Pass[Array]
) -> tuple[Array, State]:
    """Compute from the embedded tokens (B, S, d) to the final norm; return the new state too.

    A state of None is the start.
    """
    layout = cfg.layout
    x = run.at(layout.embedding.name).drop(x)
    ends: list[tuple[Array, ...]] = []
    if (part := layout.positions) is not None:
        before = None if state is None else state[-1]
        x, end = part.layer.forward(cfg, part.params(params), x, before, run)
        ends.append(tuple(end))
    after: list[tuple[Array, ...]] = []
    for number, block in enumerate(layout.blocks):
        x, end = run_block(cfg, block, params, x, None if state is None else state[number], run)
        after.append(end)
        run.note(x)
    if (part := layout.decoder) is not None:
        x, _ = part.layer.forward(cfg, part.params(params), x, None, run)
    if layout.out_norm:
        x = norm(cfg, params, layout.out_norm[0].name.removesuffix(".weight"), x, run)
        run.note(x)
    return x, [*after, *ends]


def run_block(
    cfg: ModelConfig,
    block: Block,
    params: Params,
    x: Array,
    state: tuple[Array, ...] | None,
    run: Pass[Array],
) -> tuple[Array, tuple[Array, ...]]:
    """Return x behind the parts of one block, and the block's state after the last position."""
    after: tuple[Array, ...] = ()
    for part in block:
        u = norm(cfg, params, part.norm, x, run)
        y, end = part.layer.forward(cfg, part.params(params), u, state, run.at(part.name))
        x, state, after = x + y, None, (*after, *end)
    return x, after


def norm(cfg: ModelConfig, params: Params, name: str, x: Array, run: Pass[Array]) -> Array:
    """Return the norm `name` of x (..., d)."""
    w = params[f"{name}.weight"]
    if cfg.layout.norms[0] == "layer":
        return run.ops.layer_norm(x, 1.0 + w, cfg.norm_eps)
    y, bias = run.ops.rms_norm(x, w, cfg.norm_eps), params.get(f"{name}.bias")
    return y if bias is None else y + bias
