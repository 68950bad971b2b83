"""Equations as the vectors have them: their inputs, how these are drawn, and their results.

Inputs are exact in bfloat16 and float16, so a program in either type has the same ones: the values
of a case of denormal numbers, which only float32 has, are the exception.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mlxhog.models.ops.eager.ops_float64 import OPS, tensor
from mlxhog.models.ops.operators import Ops

Array = NDArray[Any]
Options = Mapping[str, Any]
Named = Mapping[str, Any]
Results = dict[str, Any]
"""Arrays of a framework by name."""
Draw = Callable[[np.random.Generator, tuple[int, ...], bool], Array]
"""Draws values of a shape; with large gates if the last argument is true."""

DENORMAL = 2.0**-130


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of case, one of `KINDS`."""

    about: str
    sizes: Mapping[str, int] = field(default_factory=dict)  # of axes, in place of `SIZES`
    state: bool = False  # whether an initial state is given; else it is that of the equations
    carry: bool = False  # whether the final state has cotangents
    resets: bool = False  # whether documents begin inside the sequence
    large: bool = False  # whether gates are large
    factor: float = 1.0  # of values of the inputs that are no parameters
    share: float = 1.0  # of those values that have the factor


SIZES = {"B": 1, "S": 16, "H": 2, "K": 4, "V": 6, "E": 6, "N": 4}
"""Batch, positions, heads, widths of keys and values; channels and states of each."""

KINDS = {
    "usual": Kind(about="two sequences from an empty state", sizes={"B": 2}),
    "one": Kind(about="one position after an initial state", sizes={"B": 2, "S": 1}, state=True),
    "odd": Kind(about="an odd length, whose last chunk is not full", sizes={"S": 37, "H": 1}),
    "state": Kind(about="an initial state", state=True),
    "carry": Kind(
        about="an initial state, and gradients that come back through the final one",
        sizes={"S": 11}, state=True, carry=True,
    ),
    "gates": Kind(about="gates so large that a program without care overflows", large=True),
    "documents": Kind(
        about="documents that begin inside the sequence, where the state is reset",
        sizes={"B": 2, "S": 24}, state=True, carry=True, resets=True,
    ),
    "zeros": Kind(about="all inputs are 0: no result may be NaN", sizes={"S": 5}, factor=0.0),
    "denormals": Kind(
        about="half of the inputs below 2^-126, which a program may take for 0",
        sizes={"S": 9}, factor=DENORMAL, share=0.5,
    ),
    "wide": Kind(
        about="wider heads, for kernels that need a multiple of 16",
        sizes={"H": 1, "K": 16, "V": 16, "E": 32, "N": 16},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input of some equations."""

    name: str
    axes: str  # by their names in `SIZES`, numbers, or products of both such as 4HV
    draw: Draw
    role: str = "input"
    rounds: bool = True  # whether a program may round it, or its products, to its results' type


@dataclass(frozen=True, kw_only=True)
class Equations:
    """A set of equations.

    Attributes:
        name: of the equations.
        version: a change of their results raises it.
        text: the equations as plain text, with the axes of all tensors.
        tensors: the inputs, states ("state.C") among them.
        compute: the results, "h" or others, and the states after the last position, by name, from
            operators and inputs of a framework, without the states of the start.
        options: numbers that the equations have.
        resets: whether documents may begin inside the sequence.
        kinds: of its cases.
    """

    name: str
    version: int = 1
    text: str
    tensors: tuple[Tensor, ...]
    compute: Callable[[Ops, Named, Options], Results]
    options: Options = field(default_factory=dict)
    resets: bool = False
    kinds: tuple[str, ...] = tuple(KINDS)

    @property
    def own_kinds(self) -> tuple[str, ...]:
        """The kinds of its cases without those that need resets, if it has none."""
        return tuple(kind for kind in self.kinds if self.resets or not KINDS[kind].resets)

    def draw(self, kind: Kind, seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the inputs and the cotangents of a case."""
        sizes, inputs = {**SIZES, **kind.sizes}, dict[str, Array]()
        for one in self.tensors:
            if one.role == "state" and not kind.state:
                continue
            shape = tuple(size_of(axis, sizes) for axis in one.axes.split())
            rng = self._rng(one.name, seed)
            value = one.draw(rng, shape, kind.large)
            value = exact(value) if value.dtype.kind == "f" else value
            if one.role == "input" and kind.factor != 1:
                is_scaled = rng.random(shape) < kind.share
                value = np.where(is_scaled, value * np.float32(kind.factor), value)
            inputs[one.name] = value
        if kind.resets and self.resets:
            inputs["reset_mask"] = reset_mask(self._rng("reset_mask", seed), sizes["B"], sizes["S"])
        results = self.results(inputs)
        if "loss" in results:
            return inputs, {"loss": np.ones((), np.float32)}
        cotangents = {
            name: exact(self._rng(f"cotangent.{name}", seed).standard_normal(x.shape))
            for name, x in results.items()
            if kind.carry or not name.startswith("state.")
        }
        return inputs, cotangents

    def results(
        self,
        inputs: Mapping[str, Array],
        cotangents: Mapping[str, Array] | None = None,
        *,
        ops: Ops = OPS,
        rounded: bool = False,
    ) -> dict[str, Array]:
        """Return the results by name, and with cotangents the gradients of all inputs of floats.

        Arrays are PyTorch's, of float64, or with `rounded` of float32; so may the operators be.
        """
        arrays = {name: tensor(x) for name, x in inputs.items()}
        floats = {name: x for name, x in arrays.items() if x.is_floating_point()}
        if rounded:
            floats = {name: x.float() for name, x in floats.items()}
        results = dict[str, Any]()

        def loss(leaves: Named) -> Any:
            results.update(self.compute(ops, {**arrays, **leaves}, self.options))
            ends = (cotangents or {}).items()
            return sum(
                (results[name] * tensor(x).to(results[name].dtype)).sum() for name, x in ends
            )

        grads = dict[str, Any]()
        if cotangents is None:
            loss(floats)
        else:
            _, grads = ops.xp.value_and_grad(loss, floats)
        own = {**results, **{f"grad.{name}": grad for name, grad in grads.items()}}
        return {name: x.detach().double().numpy() for name, x in own.items()}

    def _rng(self, name: str, seed: int) -> np.random.Generator:
        """Return the generator of a tensor, the same whatever others there are."""
        return np.random.default_rng([seed, zlib.crc32(f"{self.name} {name}".encode())])


def size_of(axis: str, sizes: Mapping[str, int]) -> int:
    """Return the size of an axis such as "K", "4" or "4HV"."""
    letters = axis.lstrip("0123456789")
    number = axis.removesuffix(letters)
    return math.prod((int(number or 1), *(sizes[letter] for letter in letters)))


def exact(x: Array) -> Array:
    """Return the nearest float32 values that bfloat16 and float16 have, too."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float32)


def reset_mask(rng: np.random.Generator, B: int, S: int) -> Array:
    """Return resets (B, S) uint8: at the first position of one row, and next to each other."""
    resets = np.zeros((B, S), np.uint8)
    resets[0, 0] = resets[0, S // 3] = resets[0, S // 3 + 1] = 1
    resets[1:] = rng.random((B - 1, S)) < 0.15
    resets[-1, S - 1] = 1
    return resets
