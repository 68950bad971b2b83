"""The base of a layer, a frozen dataclass that declares and computes it, and the names it needs.

A layer is one class: its numbers, its parameters and state, and its equations over the operators of
any framework, which are also its float64 reference (`models/lm_float64.py`). `layers/` has the
layers of this package, `examples/my_layer.py` is a layer outside of it; both begin with
`from mlxhog.models.mad.layer import *`. This module imports no framework.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError
from mlxhog.models.forward_pass import Pass
from mlxhog.models.ops.arrays import Array, Arrays
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec

__all__ = [
    "Any",
    "Array",
    "Arrays",
    "ClassVar",
    "ConfigError",
    "Float",
    "Iterable",
    "Layer",
    "Mapping",
    "Ops",
    "ParamSpec",
    "Params",
    "Pass",
    "Sequence",
    "Shapes",
    "Sizes",
    "State",
    "bias",
    "bound",
    "check_heads",
    "check_positive",
    "dataclass",
    "linear",
    "linear_map",
    "math",
    "normal",
    "np",
    "replace",
    "small_std",
    "taps",
]

Params: TypeAlias = Mapping[str, Array]
"""The parameters of one layer, by the names that the layer declares."""

State: TypeAlias = tuple[Array, ...]
"""A layer's memory of the positions that it has read; the first axis is the batch."""

Shapes: TypeAlias = Mapping[str, Sequence[tuple[int, ...]]]
"""Shapes of one sequence's state by part ("cell", "conv", "cache"), in their order in `State`."""

Float: TypeAlias = NDArray[np.float64]


class Sizes(Protocol):
    """The properties of a model that its layers use."""

    @property
    def hidden_size(self) -> int:
        """d, width of the residual stream."""

    @property
    def max_length(self) -> int:
        """Longest sequence."""

    @property
    def norm_eps(self) -> float:
        """Epsilon of every RMSNorm."""


class Layer:
    """One layer: a frozen dataclass, hashable and picklable, whose fields are its numbers.

    Attributes:
        name: its name in a line of layers and in YAML: letters, digits, `-` and `_`.
        about: what it is, in one line.
        kind: "mixer" if it mixes positions, else "channel".
        bounded: whether it is made for sequences of `Sizes.max_length`; candidates with such a
            layer are refused on tasks with longer rows.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    kind: ClassVar[Literal["mixer", "channel"]] = "mixer"
    bounded: ClassVar[bool] = False

    def check(self, d: int) -> None:
        """Refuse numbers that cannot be built at width d.

        Raises:
            ConfigError: the message names the number and the possible values.
        """

    def param_spec(self, d: int) -> Iterable[ParamSpec]:
        """Declare the parameters under the layer's own names, in the order of use.

        Maps and taps of `linear`, `bias` and `taps` begin as those of torch.
        """
        raise NotImplementedError

    def state_shapes(self, d: int, length: int) -> Shapes:
        """Return the shapes of one sequence's state after `length` positions; {} for none."""
        return {}

    def state(self, d: int, length: int) -> Mapping[str, int]:
        """Count the numbers kept per sequence after `length` positions, by part."""
        shapes = sorted(self.state_shapes(d, length).items())
        return {part: sum(map(math.prod, arrays)) for part, arrays in shapes}

    def init_state(self, d: int, B: int, xp: Arrays[Array]) -> State:
        """Return the state before the first position of B sequences: zeros, float32."""
        shapes = (shape for arrays in self.state_shapes(d, 0).values() for shape in arrays)
        return tuple(xp.zeros((B, *shape)) for shape in shapes)

    def forward(
        self, cfg: Sizes, p: Params, x: Array, state: State | None, run: Pass[Array]
    ) -> tuple[Array, State]:
        """Map x (B, S, d) to y (B, S, d) and the state after the last position.

        It uses only `run`, `run.ops` and `run.ops.xp`, which are differentiable, and writes no
        input. A state of None is the start state.
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


def check_positive(**numbers: int) -> None:
    """Refuse a number below 1.

    Raises:
        ConfigError: the message names the first one.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; set it to at least 1")


def linear(name: str, out: int, inputs: int, *, product: bool = True) -> ParamSpec:
    """Declare the matrix (out, inputs) of a linear map, initialised as in torch.nn.Linear."""
    return ParamSpec(name, (out, inputs), bound(inputs), decay=True, product=product)


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
