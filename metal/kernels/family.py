"""Families of kernels: arrays by one table of shapes, from which declarations and launches follow.

A GPU does not check the addresses that it writes, so a launch of arrays that do not fit each other
is refused. Arrays may be NumPy's, MLX's or torch's, so only `shape` and the name of `dtype` are
used here; the engine checks dtype, layout and device.

Functions may be templates over the type R of some arrays, `REAL`, which a launch has in common:
float or bfloat. They compute in float, and write `static_cast<R>(..)`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from mlxhog.errors import ShapeError
from mlxhog.metal.kernel import TYPES, Argument, Launch, MetalKernel, Size

Numbers = Mapping[str, Any]
REAL = "real"
"""Type of arrays that are float32 or bfloat16."""
BF16_RTOL = 2.0**-8  # a rounding that goes the other way


@dataclass(frozen=True, kw_only=True)
class Family:
    """Kernels with one table of shapes.

    Attributes:
        header: file of their functions.
        shapes: shape of every array by name, such as "B S 4 NH DH"; behind it the type, if it is
            not float32, or `REAL`. A letter has one value over all arrays of a launch.
        derived: from the numbers of a launch to those that follow from others, or that it refuses.
        struct: of sizes, such as "MlstmShape{B, NH}", which the functions take behind the arrays.
        instance: of a kernel, by the numbers of a launch.
    """

    header: str
    shapes: Mapping[str, str]
    derived: Callable[[Numbers], Numbers] = lambda n: {}
    struct: str = ""
    instance: Callable[[Numbers], str] = lambda n: ""

    def kernel(
        self,
        name: str,
        inputs: str,
        outputs: str,
        scalars: str = "",
        *,
        grid: Callable[[Numbers], Size],
        threadgroup: Callable[[Numbers], Size] = lambda n: (256, 1, 1),
        at: str = "thread_position_in_grid",
        memory: Mapping[str, str] | None = None,
        **more: Any,
    ) -> MetalKernel:
        """Declare a kernel that calls `mlxhog::<name>` with its arguments in order.

        They are inputs, outputs, the struct, scalars, threadgroup memory, and what Metal sets.

        Args:
            name: of the function, and of the kernel.
            inputs: names of arrays; one that is written in place ends with "!".
            outputs: names of arrays.
            scalars: names of numbers, uint; "eps:float32" is a float.
            grid: all threads, by the numbers of a launch.
            threadgroup: threads of a threadgroup.
            at: what Metal sets for each thread.
            memory: floats of each array in threadgroup memory, by its name.
            more: other fields of `MetalKernel`.
        """
        struct, memory = self.struct, memory or {}
        words = [*re.findall(r"\b[A-Z]+\b", struct.partition("{")[2]), *scalars.split()]
        numbers = [word.partition(":") for word in words]
        arrays = tuple(
            Argument(name=word.rstrip("!"), dtype=self._parts(word)[1], writes=word.endswith("!"))
            for word in inputs.split()
        )
        results = tuple(Argument(name=word, dtype=self._parts(word)[1]) for word in outputs.split())
        call = [*(one.name for one in (*arrays, *results)), *[f"mlxhog::{struct}"] * bool(struct)]
        call += [*(word.partition(":")[0] for word in scalars.split()), *memory, at]
        lines = [f"threadgroup float {each}[{floats}];" for each, floats in memory.items()]
        if memory:
            taken = " + ".join(f"sizeof({each})" for each in memory)
            lines.append(
                f'static_assert({taken} <= 32768, "more threadgroup memory than a chip has");'
            )

        def launch(x: Mapping[str, Any], **given: Any) -> Launch:
            numbers: dict[str, Any] = {}
            for each in (*(one.name for one in arrays), *x):  # others tell sizes that these lack
                if each in x:
                    for word, length in zip(self._parts(each)[0], x[each].shape, strict=False):
                        numbers.setdefault(word, int(length))
            numbers |= given
            numbers |= self.derived(numbers)
            for one in arrays:
                shape, expected = tuple(x[one.name].shape), self.shape(one.name, numbers)
                if shape != expected:
                    raise ShapeError(
                        f"{name}: {one.name} has shape {shape}, the other arguments require "
                        f"{expected}; pass arrays of one model, batch and chunk size"
                    )
            return Launch(
                kernel=kernels[self._real(x) if REAL in types else "float32"],
                inputs={i.name: (numbers if i.scalar else x)[i.name] for i in inputs_of},
                outputs={one.name: self.shape(one.name, numbers) for one in results},
                grid=grid(numbers),
                threadgroup=threadgroup(numbers),
                instance=self.instance(numbers),
            )

        scalar = tuple(
            Argument(name=each, dtype=kind or "uint32", scalar=True) for each, _, kind in numbers
        )
        types, inputs_of = {one.dtype for one in (*arrays, *results)}, (*arrays, *scalar)
        kernels: dict[str, MetalKernel] = {}
        for real in ("bfloat16", "float32") if REAL in types else ("float32",):
            kernels[real] = MetalKernel(
                name=name if real == "float32" else f"{name}_{real}",
                header=self.header,
                source="\n".join([*lines, f"mlxhog::{name}({', '.join(call)});"]),
                inputs=tuple(_typed(one, real) for one in inputs_of),
                outputs=tuple(_typed(one, real) for one in results),
                variants=tuple(kernels.values()),
                launch=launch,
                **more | ({"rtol": BF16_RTOL} if real == "bfloat16" else {}),
            )
        return kernels["float32"]

    def _real(self, x: Mapping[str, Any]) -> str:
        """The type of the arrays of `REAL`."""
        own = {name: array for name, array in x.items() if self._parts(name)[1] == REAL}
        types = {name: str(array.dtype).rpartition(".")[2] for name, array in own.items()}
        if len(set(types.values())) > 1:
            raise ShapeError(f"arrays of one type are needed, these have {types}; cast them")
        return next(iter(types.values()), "float32")

    def _parts(self, name: str) -> tuple[list[str], str]:
        """The axes of an array, and its type."""
        *axes, last = self.shapes[name.rstrip("!")].split()
        return (axes, last) if last in (*TYPES, REAL) else ([*axes, last], "float32")

    def shape(self, name: str, numbers: Numbers) -> tuple[int, ...]:
        """Return the shape of an array, by the numbers of a launch."""
        shape = tuple(
            int(word) if word.isdigit() else int(numbers[word]) for word in self._parts(name)[0]
        )
        if prod(shape) >= 2**32:
            raise ShapeError(
                f"{name} of shape {shape} has 2^32 elements or more, and a kernel counts in "
                "32 bits; run fewer sequences at once"
            )
        return shape


def _typed(one: Argument, real: str) -> Argument:
    return replace(one, dtype=real) if one.dtype == REAL else one
