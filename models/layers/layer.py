"""The base of a layer, the settings of a forward pass, and helpers of layers.

A layer is one class: its numbers, its parameters and state, and its equations over the operators of
any framework, which are also its float64 reference (`models/lm_float64.py`). `layers/` has the
layers of this package, `examples/my_layer.py` is a layer outside of it. This module imports no
framework.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self, TypeAlias, dataclass_transform

from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.models import adapters
from mlxhog.models.ops.arrays import Array, MatmulWeight
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec, bound

Params: TypeAlias = Mapping[str, Array]
"""The parameters of one layer, by the names that the layer declares."""

State: TypeAlias = tuple[Array, ...]
"""A layer's memory of the positions that it has read; the first axis is the batch."""

Output: TypeAlias = tuple[Array, State]
"""A layer's result (B, S, d), and its state after the last position."""

Shapes: TypeAlias = Mapping[str, Sequence[tuple[int, ...]]]
"""Shapes of one sequence's state by part ("cell", "conv", "cache"), in their order in `State`.

The part "count" is integer-valued, such as the number of positions read."""


@dataclass(frozen=True)
class ForwardContext:
    """The settings of one forward pass, in arrays of one framework, and parts of many layers."""

    ops: Ops
    norm_eps: float = 1e-6  # epsilon of every RMSNorm
    max_length: int = 0  # longest sequence, if positions or layers are made for one
    reset_mask: Array = None  # (B, S) bool, true where a document starts and the memory is reset
    masks: Mapping[str, Array] | None = None  # (B, S, width) by site, 0 or 1 / (1 - rate)
    hidden: list[Array] | None = None  # receives x after embedding, every block and final norm
    site: str = ""  # where dropout is now
    lora: float | None = None  # factor of the products of adapters, see `models/adapters.py`
    multiplied: set[int] = field(default_factory=set)  # ids of the A of adapters that were used
    recompute: bool = False  # whether the backward pass recomputes each block, see `model.blocks`
    unread: str = ""  # name of a linear layer of which gradients alone are used, see `Ops.unread`

    def linears(self, x: Array, p: Params, *names: str, heads: int = 0) -> tuple[Array, ...]:
        """Return x W^T + b of linear maps by their names: of "q", `q.weight` and any `q.bias`.

        With `heads` each is cut into heads, (B, S, heads, width).
        """
        weights = [p[f"{name}.weight"] for name in names]
        ops = self.ops.unread() if names == (self.unread,) else self.ops
        ys = ops.linears(x, weights, [p.get(f"{name}.bias") for name in names])
        if self.lora is not None:
            ys = self._adapted(x, p, names, ys)
        return tuple(y.reshape(*x.shape[:2], heads, -1) if heads else y for y in ys)

    def linear(self, x: Array, p: Params, name: str) -> Array:
        """Return x W^T + b of one linear map."""
        (y,) = self.linears(x, p, name)
        return y

    def halves(self, x: Array, p: Params, name: str) -> tuple[Array, ...]:
        """Return the first and the second half of the linear map `name`, as two arrays."""
        halves = self.ops.xp.halves

        def cut(w: Any) -> Sequence[Any]:
            if isinstance(w, MatmulWeight):
                return [MatmulWeight(half) for half in halves(w.array)]
            both: Sequence[Any] = halves(w)
            return both

        return self._parts(x, p, name, cut)

    def parts(self, x: Array, p: Params, name: str, *ends: int) -> tuple[Array, ...]:
        """Return parts of the linear map `name`, which end before these rows and at its last."""
        return self._parts(x, p, name, lambda w: [w[a:b] for a, b in pairwise((0, *ends, None))])

    def _parts(
        self, x: Array, p: Params, name: str, cut: Callable[[Any], Sequence[Any]]
    ) -> tuple[Array, ...]:
        bias = p.get(f"{name}.bias")
        ys = self.ops.linears(x, cut(p[f"{name}.weight"]), None if bias is None else cut(bias))
        if self.lora is not None and name + adapters.A in p:
            low = self.lora * self._low(x, p, [name])[0]
            added = self.ops.linears(low, cut(p[name + adapters.B]))
            ys = [y + up for y, up in zip(ys, added, strict=True)]
        return tuple(ys)

    def _adapted(
        self, x: Array, p: Params, names: Sequence[str], ys: Sequence[Array]
    ) -> Sequence[Array]:
        """Return results of linear maps of x with the products of their adapters."""
        own = [name for name in names if name + adapters.A in p]
        added = {
            name: self.ops.linears(self.lora * low, [p[name + adapters.B]])[0]
            for name, low in zip(own, self._low(x, p, own) if own else (), strict=True)
        }
        return [y + added[n] if n in added else y for n, y in zip(names, ys, strict=True)]

    def _low(self, x: Array, p: Params, names: Sequence[str]) -> Sequence[Array]:
        """Return A x of adapters, (B, S, ..., rank) each; those of one input share its dropout.

        So do the heads of a position.
        """
        site = f"{self.site}.{names[0]}{adapters.A}"
        if self.masks is not None and (mask := self.masks.get(site)) is not None:
            x = x * mask.reshape(*mask.shape[:2], *[1] * (x.ndim - 3), -1)
        matrices = [p[name + adapters.A] for name in names]
        self.multiplied.update(map(id, matrices))
        return self.ops.linears(x, matrices)

    def conv(
        self, x: Array, p: Params, state: Array, name: str = "conv", *, silu: bool = True
    ) -> tuple[Array, Array]:
        """Return the causal convolution of x (B, S, C), through SiLU or not, and its last inputs.

        `state` has the last inputs before x; none is seen across the start of a document.
        """
        w, b = p[f"{name}.weight"], p.get(f"{name}.bias")
        return self.ops.causal_conv(x, w, b, state=state, reset_mask=self.reset_mask, silu=silu)

    def norm(self, x: Array, p: Params, name: str) -> Array:
        """Return the RMSNorm `name` over the last axis of x."""
        return self.ops.rms_norm(x, p[f"{name}.weight"], self.norm_eps)

    def gated_output(
        self, h: Array, p: Params, gate: Array = None, activation: str = "silu"
    ) -> Array:
        """Return W_out( act(gate) * RMSNorm_head(h) ) of heads h (B, S, NH, DH).

        Without a gate its factor is 1.
        """
        y = self.norm(h, p, "head_norm").flatten(-2)
        if gate is not None:
            is_silu = activation == "silu"
            y = self.ops.swiglu(gate, y) if is_silu else self.ops.glu(gate, y, activation)
        return self.linear(y, p, "out_proj")

    def at(self, site: str) -> "ForwardContext":
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

    A number is a plain field, such as `heads: int = 4`, or an `option` with its limits or choices.
    """

    name: ClassVar[str]  # in a line of layers and in YAML: letters, digits, `-` and `_`
    about: ClassVar[str] = ""  # what it is; the first line of its docstring
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"  # mixes positions, or does not
    inside: ClassVar[str] = ""  # prefix of its parameters within its place in a candidate
    keeps_bf16: ClassVar[bool] = False
    """Whether results of its linear layers go to operators alone, where they may be bfloat16."""
    output_projection: ClassVar[str] = ""
    """Linear layer whose result, after any dropout, is that of `forward`; "" if there is none."""
    takes_plain_fields: ClassVar[bool] = True  # its fields are options, see `config.options`
    unrolled: ClassVar[bool] = False  # whether eager operators compute it position by position

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

    def hyperparameters(self) -> dict[str, Any]:
        """Return every number by its name."""
        kind: Any = type(self)  # a dataclass, by `__init_subclass__`
        names = (one.name for one in fields(kind) if one.name in options(kind))
        return {name: getattr(self, name) for name in names}

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d: heads that do not divide, and below 1.

        Raises:
            ConfigError: the message names the number and the possible values.
        """
        layer, specs = self.at_width(d), options(type(self))
        for name, value in layer.hyperparameters().items():
            if name == "heads":
                width = self.heads_width(d)
                check_heads(value, width, "width" if width == d else "inner width")
            elif (spec := specs.get(name)) is not None:
                least = 1 if spec.low is None else spec.low
                if spec.type is int and value is not None and value < least:
                    raise ConfigError(f"{name} is {value}; set it to at least {least:g}")
                try:
                    spec.convert(value)
                except ValueError as error:
                    raise ConfigError(f"{name} {error}") from error

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters under the layer's own names, in the order of use."""
        raise NotImplementedError

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of one sequence's state after `length` positions; {} for none."""
        return {}

    def state(self, d: int, length: int) -> dict[str, int]:
        """Count the numbers kept per sequence after `length` positions, by part."""
        shapes = sorted(self.state_shapes(d, length).items())
        return {part: sum(map(math.prod, own)) for part, own in shapes if part != "count"}

    def forward(self, p: Params, x: Array, state: State, ctx: ForwardContext) -> Output:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position.

        It uses only `ctx`, `ctx.ops` and `ctx.ops.xp`, which are differentiable, and writes no
        input. A part of the state that is None is that of the start.
        """
        raise NotImplementedError


def of_model(default: object) -> Any:
    """Return a field that is no number of a candidate: a model that has the layer sets it."""
    return field(default=default, compare=False)


def check_heads(heads: int, d: int, width: str = "width") -> None:
    """Refuse a number of heads that does not divide a width.

    Raises:
        ConfigError: the message lists the possible numbers.
    """
    if heads < 1 or d % heads:
        possible = ", ".join(str(n) for n in range(1, min(d, 1024) + 1) if d % n == 0)
        raise ConfigError(f"heads is {heads}, and the {width} is {d}; choose one of {possible}")


def linear_params(
    inputs: int,
    *,
    bias: bool = False,
    init: str = "",
    autocast: bool = True,
    outs: Mapping[str, int] | None = None,
    **more: int,
) -> Iterable[ParamSpec]:
    """Declare linear maps of one input: `q=d` is `q.weight` (d, inputs) and any `q.bias` (d,).

    They begin as torch.nn.Linear; or with `init`, and their biases at 0. `autocast` is that of
    `ParamSpec`; `outs` has names that are not identifiers of Python.
    """
    start = init or bound(inputs)
    for name, out in {**(outs or {}), **more}.items():
        yield ParamSpec(f"{name}.weight", (out, inputs), start, decay=True, autocast=autocast)
        if bias:
            yield ParamSpec(f"{name}.bias", (out,), "zeros" if init else start)


def conv_params(
    name: str, channels: int, kernel: int, *, bias: bool = False
) -> Iterable[ParamSpec]:
    """Declare a depthwise convolution, (channels, 1, kernel) and any bias, as torch's Conv1d."""
    yield ParamSpec(f"{name}.weight", (channels, 1, kernel), bound(kernel), decay=True)
    if bias:
        yield ParamSpec(f"{name}.bias", (channels,), bound(kernel))
