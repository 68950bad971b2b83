"""The arguments of kernels: declaring them, and checking that a launch stays inside its arrays.

A GPU does not check the addresses that it writes. Arrays may be NumPy's, MLX's or torch's, so only
`shape` is used here; the engine checks dtype, layout and device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import Argument, Kernel, Launch, Size

LEAST = 8  # elements: MLX passes a smaller array in memory that cannot be written
MOST = 2**31 - 1  # elements: MLX counts them in int32, and kernels in uint

DONE = Argument(name="done", dtype="uint32")
"""The output of a kernel that only writes its inputs."""


class Array(Protocol):
    """An array of any framework."""

    @property
    def shape(self) -> Any:
        """Sizes."""


def arrays(names: str, dtype: str = "float32") -> tuple[Argument, ...]:
    """Declare arrays, their names separated by spaces."""
    return tuple(Argument(name=name, dtype=dtype) for name in names.split())


def written(name: str, dtype: str = "float32") -> Argument:
    """Declare an array that the kernel writes in place."""
    return Argument(name=name, dtype=dtype, writes=True)


def floats(names: str) -> tuple[Argument, ...]:
    """Declare scalars of type float."""
    return tuple(Argument(name=name, scalar=True) for name in names.split())


def sizes(names: str) -> tuple[Argument, ...]:
    """Declare scalars of type uint."""
    return tuple(Argument(name=name, dtype="uint32", scalar=True) for name in names.split())


def declare(
    name: str,
    header: str,
    inputs: Sequence[Argument],
    outputs: Sequence[Argument],
    scalars: Sequence[Argument] = (),
    *,
    sample: Callable[[np.random.Generator, int], Launch],
    at: str = "thread_position_in_grid",
    shape: str = "",
    memory: Mapping[str, str] | None = None,
    **more: Any,
) -> Kernel:
    """Declare a kernel that calls `mlxhog::<name>` with its arguments in order.

    Args:
        name: of the function, and of the kernel.
        header: file of the function.
        inputs: arrays.
        outputs: behind the scalars; with a shape before them.
        scalars: numbers.
        sample: as of `Kernel`.
        at: what Metal sets for each thread, the last arguments of the function.
        shape: struct of sizes, such as "MlstmShape{B, NH}", behind the arrays; its sizes are
            scalars before the others.
        memory: floats of each array in threadgroup memory, by its name.
        more: other fields of `Kernel`.
    """
    numbers = (*sizes(" ".join(re.findall(r"\b[A-Z]+\b", shape.partition("{")[2]))), *scalars)
    memory = memory or {}
    first, last = ((*inputs, *outputs), scalars) if shape else ((*inputs, *numbers), outputs)
    words = [one.name for one in first] + [f"mlxhog::{shape}"] * bool(shape)
    words += [*(one.name for one in last), *memory, at]
    lines = [f"threadgroup float {each}[{floats}];" for each, floats in memory.items()]
    if memory:
        taken = " + ".join(f"sizeof({each})" for each in memory)
        lines.append(f'static_assert({taken} <= 32768, "more threadgroup memory than a chip has");')
    return Kernel(
        name=name,
        header=header,
        source="\n".join([*lines, f"mlxhog::{name}({', '.join(words)});"]),
        inputs=(*inputs, *numbers),
        outputs=tuple(outputs),
        sample=sample,
        **more,
    )


Draw = Callable[[np.random.Generator, tuple[int, ...]], Any]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """Draw normal numbers, float32."""
    return rng.standard_normal(shape, np.float32)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The kernels of an operator, with one table of shapes.

    Attributes:
        header: file of their functions.
        struct: of their sizes, as `declare` takes it.
        shapes: shape of every array by name, such as "B S 4 NH DH".
        derived: from the letters of a launch to those that follow from others, or that it refuses.
        sizes: letters of a sample of about n elements.
        drawn: how arrays of a sample are drawn; others are normal numbers.
        integers: names of int32 arrays.
        instance: of a kernel, by the letters of a launch.
    """

    header: str
    struct: str
    shapes: Mapping[str, str]
    derived: Callable[[Mapping[str, int]], Mapping[str, int]]
    sizes: Callable[[int], Mapping[str, int]]
    drawn: Mapping[str, Draw]
    integers: str = ""
    instance: Callable[[Mapping[str, int]], str] = lambda letters: ""

    def kernel(
        self,
        name: str,
        inputs: str,
        outputs: str,
        scalars: Sequence[Argument] = (),
        *,
        grid: Callable[[Mapping[str, int]], Size],
        group: Callable[[Mapping[str, int]], Size],
        struct: str = "",
        header: str = "",
        **more: Any,
    ) -> Kernel:
        """Declare a kernel of arrays, whose launch has a grid and groups that its letters give."""

        def launch(x: Mapping[str, Any], **given: Any) -> Launch:
            return self._launch(kernel, x, given, grid, group)

        def sample(rng: np.random.Generator, n: int) -> Launch:
            letters = self.sizes(n)
            return launch(self.sample(rng, letters, inputs), **letters, eps=1e-6, silu=1)

        kinds = {each: "int32" for each in self.integers.split()}
        kernel = declare(
            name,
            header or self.header,
            [Argument(name=each, dtype=kinds.get(each, "float32")) for each in inputs.split()],
            arrays(outputs),
            scalars,
            sample=sample,
            shape=struct or self.struct,
            launch=launch,
            **more,
        )
        return kernel

    def sample(
        self, rng: np.random.Generator, letters: Mapping[str, int], names: str
    ) -> dict[str, Any]:
        """Random arrays by name, of the shapes that letters give."""
        numbers = {**letters, **self.derived(letters)}
        return {
            name: self.drawn.get(name, normal)(rng, _shape(self.shapes[name], numbers))
            for name in names.split()
        }

    def _launch(
        self,
        kernel: Kernel,
        x: Mapping[str, Any],
        given: Mapping[str, Any],
        grid: Callable[[Mapping[str, int]], Size],
        group: Callable[[Mapping[str, int]], Size],
    ) -> Launch:
        letters: dict[str, Any] = {}
        arrays = [one for one in kernel.inputs if not one.scalar]
        for name in (*(one.name for one in arrays), *x):  # others tell sizes that these lack
            if name in x:
                for word, length in zip(self.shapes[name].split(), x[name].shape, strict=False):
                    letters.setdefault(word, int(length))
        letters |= given
        letters |= self.derived(letters)

        def shape_of(name: str) -> tuple[int, ...]:
            shape = _shape(self.shapes[name], letters)
            if prod(shape) >= 2**32:
                raise ShapeError(
                    f"{kernel.name}: {name} of shape {shape} has 2^32 elements or more, "
                    "and a kernel counts in 32 bits; run fewer sequences at once"
                )
            return shape

        for one in arrays:
            shape, expected = tuple(x[one.name].shape), shape_of(one.name)
            if shape != expected:
                raise ShapeError(
                    f"{kernel.name}: {one.name} has shape {shape}, the other arguments require "
                    f"{expected}; pass arrays of one model, batch and chunk size"
                )
        return Launch(
            kernel=kernel,
            inputs={
                one.name: letters[one.name] if one.scalar else x[one.name] for one in kernel.inputs
            },
            outputs={one.name: shape_of(one.name) for one in kernel.outputs},
            grid=grid(letters),
            group=group(letters),
            instance=self.instance(letters),
        )


def _shape(words: str, letters: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(word) if word.isdigit() else letters[word] for word in words.split())


def size(array: Array) -> int:
    """Number of elements.

    Raises:
        ShapeError: more than a kernel can count.
    """
    n = prod(int(length) for length in array.shape)
    if n > MOST:
        raise ShapeError(
            f"an array of shape {tuple(array.shape)} has {n} elements; "
            f"a kernel counts up to {MOST}: launch it in parts"
        )
    return n


def check_written(name: str, array: Array) -> None:
    """Refuse an array that a kernel cannot write in place.

    Raises:
        ShapeError: not flat, or too small.
    """
    if len(array.shape) != 1 or size(array) < LEAST:
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}; a kernel writes flat arrays of {LEAST} or "
            "more elements in place: pass the whole segment and an offset"
        )


def check_range(name: str, array: Array, offset: int, n: int) -> None:
    """Refuse a range that does not lie inside an array that is written in place.

    Raises:
        ShapeError: naming the range and the array.
    """
    check_written(name, array)
    if offset < 0 or n < 0 or offset + n > size(array):
        raise ShapeError(
            f"elements {offset} to {offset + n} of {name}, which has {size(array)}; "
            "build the model and the arena from the same config"
        )


def check_size(name: str, array: Array, expected: int) -> None:
    """Refuse an array with another number of elements.

    Raises:
        ShapeError: naming both numbers.
    """
    if size(array) != expected:
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}, {size(array)} elements; this launch needs "
            f"{expected}, as many as its other arrays"
        )


def check_rows(rows: Array, g: Array, height: int) -> tuple[int, int]:
    """Refuse row numbers that do not fit the gradient or the parameter; return (rows, width).

    Values are checked only in NumPy arrays; kernels always skip rows outside 0 to height - 1.

    Raises:
        ShapeError: shapes, sizes, numbers outside the parameter, or numbers that do not ascend.
    """
    if len(rows.shape) != 1 or len(g.shape) != 2 or rows.shape[0] != g.shape[0]:
        raise ShapeError(
            f"rows have shape {tuple(rows.shape)}, their values {tuple(g.shape)}; "
            "expected (r,) and (r, d)"
        )
    size(g)  # refuses too many
    if isinstance(rows, np.ndarray) and rows.size:
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= height:
            raise ShapeError(
                f"rows run from {low} to {high}; the parameter has rows 0 to {height - 1}"
            )
        if not bool(np.all(rows[1:] > rows[:-1])):
            raise ShapeError(
                "rows repeat or do not ascend; a step updates the state of a row once: "
                "use Rows.coalesced() first"
            )
    return int(g.shape[0]), int(g.shape[1])


def row_group(d: int) -> Size:
    """Threads of one group over a grid (d, rows, 1): about 256, along the row first."""
    x = max(1, min(d, 256))
    return x, 256 // x, 1
