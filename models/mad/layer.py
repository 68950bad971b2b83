"""The base of a layer, the settings of a forward pass, and helpers of layers.

A layer is one class: its numbers, its parameters and state, and its equations over the operators of
any framework, which are also its float64 reference (`models/lm_float64.py`). `layers/` has the
layers of this package, `examples/my_layer.py` is a layer outside of it. This module imports no
framework.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeAlias, dataclass_transform

from mlxhog.errors import ConfigError
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec

Params: TypeAlias = Mapping[str, Array]
"""The parameters of one layer, by the names that the layer declares."""

State: TypeAlias = tuple[Array, ...]
"""A layer's memory of the positions that it has read; the first axis is the batch."""

Shapes: TypeAlias = Mapping[str, Sequence[tuple[int, ...]]]
"""Shapes of one sequence's state by part ("cell", "conv", "cache"), in their order in `State`.

The part "count" has whole numbers, such as how many positions were read."""

CLOSED_GATE = -25.0
"""Forget pre-activation at the first token of a document: the old memory has the weight exp(-25).

Source: NX-AI/xlstm-jax, reset_at_document_boundaries.
"""


@dataclass(frozen=True)
class Run:
    """The settings of one forward pass, in arrays of one framework.

    Attributes:
        ops: the operators.
        norm_eps: epsilon of every RMSNorm.
        max_length: longest sequence, if positions or layers are made for one.
        starts: (B, S) bool, true at the first token of each document, where the memory is reset;
            None for no resets.
        masks: (B, S, width) by dropout site, 0 or 1 / (1 - rate); None outside of training.
        hidden: receives x after the embedding, after every block, and after the final norm.
        site: where dropout is now.
    """

    ops: Ops
    norm_eps: float = 1e-6
    max_length: int = 0
    starts: Array = None
    masks: Mapping[str, Array] | None = None
    hidden: list[Array] | None = None
    site: str = ""

    def linears(
        self, x: Array, params: Mapping[str, Array], *names: str, heads: int = 0
    ) -> tuple[Array, ...]:
        """Return x W^T + b of linear maps by their names: of "q", `q.weight` and any `q.bias`.

        With `heads` each is cut into heads, (B, S, heads, width).
        """
        weights = [params[f"{name}.weight"] for name in names]
        ys = self.ops.linears(x, weights, [params.get(f"{name}.bias") for name in names])
        return tuple(y.reshape(*x.shape[:2], heads, -1) if heads else y for y in ys)

    def linear(self, x: Array, params: Mapping[str, Array], name: str) -> Array:
        """Return x W^T + b of one linear map."""
        (y,) = self.linears(x, params, name)
        return y

    def halves(self, x: Array, params: Mapping[str, Array], name: str) -> tuple[Array, ...]:
        """Return the first and the second half of the linear map `name`, as two arrays."""
        w, b = params[f"{name}.weight"], params.get(f"{name}.bias")
        halves = self.ops.xp.halves
        return tuple(self.ops.linears(x, halves(w), None if b is None else halves(b)))

    def forget(self, f: Array) -> Array:
        """Return forget pre-activations f (B, S, NH), closed where documents start."""
        if self.starts is None:
            return f
        return self.ops.xp.where(self.starts[..., None], CLOSED_GATE, f)

    def at(self, site: str) -> "Run":
        """Return the pass with dropout at `site`."""
        return self if self.masks is None else replace(self, site=site)

    def drop(self, x: Array) -> Array:
        """Return x (B, S, ...) without the units that are dropped at this site."""
        mask = None if self.masks is None else self.masks.get(self.site)
        return x if mask is None else x * mask.reshape(x.shape)

    def note(self, x: Array) -> None:
        """Add x to the trace, if there is one."""
        if self.hidden is not None:
            self.hidden.append(x)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Layer:
    """One layer; a subclass is a frozen dataclass by itself, whose fields are its numbers.

    Attributes:
        name: its name in a line of layers and in YAML: letters, digits, `-` and `_`.
        about: what it is; the first line of its docstring.
        kind: "mixer" if it mixes positions, else "channel".
        bounded: whether it is made for sequences of `Run.max_length`; candidates with such a layer
            are refused on tasks with longer rows.
        may_be_0: whole numbers that may be 0.
        inside: prefix of its parameters within its place in a candidate.
        takes_plain_fields: its fields are options, see `config.options`.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"
    bounded: ClassVar[bool] = False
    may_be_0: ClassVar[tuple[str, ...]] = ()
    inside: ClassVar[str] = ""
    takes_plain_fields: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        """Make the class a dataclass, and read `about`."""
        if cls.__doc__:
            cls.about = cls.__doc__.partition("\n")[0].rstrip(".")
        dataclass(frozen=True, kw_only=True)(cls)

    def heads_width(self, d: int) -> int:
        """Return the width that is cut into heads, at width d."""
        return d

    def at_width(self, d: int) -> Self:
        """Return the layer with every number that follows from width d, where it is left open."""
        return self

    def numbers(self) -> dict[str, Any]:
        """Return every number by its name."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d: heads that do not divide, and below 1.

        Raises:
            ConfigError: the message names the number and the possible values.
        """
        for name, value in self.at_width(d).numbers().items():
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            if name == "heads":
                width = self.heads_width(d)
                check_heads(value, width, "width" if width == d else "inner width")
            elif value < (least := int(name not in self.may_be_0)):
                raise ConfigError(f"{name} is {value}; set it to at least {least}")

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters under the layer's own names, in the order of use.

        Those of `linear`, `maps`, `bias` and `taps` begin as those of torch.
        """
        raise NotImplementedError

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of one sequence's state after `length` positions; {} for none."""
        return {}

    def state(self, d: int, length: int) -> dict[str, int]:
        """Count the numbers kept per sequence after `length` positions, by part."""
        shapes = sorted(self.state_shapes(d, length).items())
        return {part: sum(map(math.prod, own)) for part, own in shapes if part != "count"}

    def init_state(self, d: int, B: int, xp: Arrays) -> State:
        """Return the state before the first position of B sequences: zeros."""
        return tuple(
            xp.zeros((B, *shape), "int32" if part == "count" else "float32")
            for part, shapes in self.state_shapes(d, 0).items()
            for shape in shapes
        )

    def start(self, d: int) -> State:
        """Return the state in which every part is left out, which is the same."""
        return (None,) * sum(map(len, self.state_shapes(d, 0).values()))

    def forward(self, p: Params, x: Array, state: State, run: Run) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position.

        It uses only `run`, `run.ops` and `run.ops.xp`, which are differentiable, and writes no
        input. A part of the state that is None is that of the start.
        """
        raise NotImplementedError


def check_heads(heads: int, d: int, width: str = "width") -> None:
    """Refuse a number of heads that does not divide a width.

    Raises:
        ConfigError: the message lists the possible numbers.
    """
    if heads < 1 or d % heads:
        possible = ", ".join(str(n) for n in range(1, min(d, 1024) + 1) if d % n == 0)
        raise ConfigError(f"heads is {heads}, and the {width} is {d}; choose one of {possible}")


def linear(name: str, out: int, inputs: int, *, product: bool = True) -> ParamSpec:
    """Declare the matrix (out, inputs) of a linear map, initialised as in torch.nn.Linear."""
    return ParamSpec(name, (out, inputs), bound(inputs), decay=True, product=product)


def maps(inputs: int, *, product: bool = True, **outs: int) -> Iterable[ParamSpec]:
    """Declare the matrices of linear maps of one input: `q_proj=d` is `q_proj.weight`."""
    return [linear(f"{name}.weight", out, inputs, product=product) for name, out in outs.items()]


def linear_map(name: str, out: int, inputs: int, init: str, bias: bool) -> Iterable[ParamSpec]:
    """Declare a linear map with these initial values, and a bias of zeros if it has one."""
    yield ParamSpec(f"{name}.weight", (out, inputs), init, decay=True, product=True)
    if bias:
        yield ParamSpec(f"{name}.bias", (out,), "zeros")


def normal(std: float) -> str:
    """Return the initialiser of that standard deviation."""
    return f"normal:{std!r}"


def small_std(d: int) -> float:
    """Return the standard deviation of xLSTM's maps that do not end in the residual stream."""
    return math.sqrt(2 / (5 * d))


def bias(name: str, out: int, inputs: int) -> ParamSpec:
    """Declare the bias (out,) of a linear map of `inputs` inputs."""
    return ParamSpec(name, (out,), bound(inputs))


def taps(name: str, channels: int, kernel: int) -> ParamSpec:
    """Declare the taps (channels, 1, kernel) of a depthwise convolution, as torch's Conv1d."""
    return ParamSpec(name, (channels, 1, kernel), bound(kernel), decay=True)


def bound(inputs: int) -> str:
    """Return the initialiser of a map of `inputs` inputs: uniform, up to 1 / sqrt(inputs)."""
    return f"uniform:{1 / math.sqrt(inputs)!r}"
