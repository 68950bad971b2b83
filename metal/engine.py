"""What the engines that run Metal kernels share; `engines.create` starts one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base.resources import shortage
from mlxhog.errors import MetalError, ShapeError
from mlxhog.metal.kernel import Launch, Size


class MetalEngine(ABC):
    """Runs launches in order. Not thread-safe: the thread that made it uses it.

    Attributes:
        name: one of `engines.NAMES`.
        framework: whose arrays it takes, for messages.
        emulated: whether the CPU runs the kernels.
    """

    name: str
    framework: str
    emulated = False

    @abstractmethod
    def array(self, host: NDArray[Any]) -> Any:
        """Copy host values to the engine's own kind of array."""

    @abstractmethod
    def wrap(self, host: NDArray[Any]) -> Any:
        """Return an array over the same memory, which the GPU reads and writes in place.

        Raises:
            EnvironmentLacks: this engine cannot import that address without a copy.
        """

    @abstractmethod
    def host(self, array: Any) -> NDArray[Any]:
        """Wait for the array and return its values; where memory is shared, a view."""

    @abstractmethod
    def dtype_of(self, value: Any) -> str | None:
        """NumPy's name of an array's type; None for a value that is no row-major array here."""

    @abstractmethod
    def start(self, launch: Launch, threadgroup: Size) -> Sequence[Any]:
        """Run a launch whose arguments fit; return its outputs in order."""

    def run(self, launch: Launch) -> dict[str, Any]:
        """Launch a kernel and return its outputs by name; without threads they are zeros.

        A kernel that writes an input has finished when this returns: the framework does not know
        of the write, so nothing else may be pending.

        Raises:
            ShapeError: an argument of another kind than the kernel declares, or an array that is
                written in place and passed a second time; nothing has run.
            MetalError: the kernel does not compile, with the source line, or fails.
        """
        self._check(launch)
        kernel = launch.kernel
        x, y, z = (min(sizes) for sizes in zip(launch.threadgroup, launch.grid, strict=True))
        names = [one.name for one in kernel.outputs]
        if x * y * z == 0:
            zeros = (np.zeros(launch.outputs[one.name], one.dtype) for one in kernel.outputs)
            return dict(zip(names, map(self.array, zeros), strict=True))
        try:
            outputs = self.start(launch, (x, y, z))
        except ValueError as error:  # more threads than its registers allow on this chip
            raise MetalError(
                f"kernel {kernel.name} cannot run in threadgroups of {x} x {y} x {z} threads on "
                f"this GPU: {error}; use --kernels eager and --gpu-write cpu"
            ) from error
        except (RuntimeError, SyntaxError, AttributeError) as error:
            if shortage(error):
                raise
            raise MetalError(f"kernel {kernel.name} failed: {error}") from error
        return dict(zip(names, outputs, strict=True))

    def _check(self, launch: Launch) -> None:
        """Refuse a launch with other arguments than its kernel declares."""
        kernel, taken = launch.kernel, dict[int, str]()
        for one in sorted(kernel.inputs, key=lambda one: not one.writes):
            value, what = launch.inputs[one.name], f"kernel {kernel.name}: {one.name}"
            if one.scalar:
                shape = tuple(getattr(value, "shape", ()))
                if not hasattr(value, "__float__") or prod(shape) != 1:
                    got = f"an array of shape {shape}" if shape else repr(value)
                    raise ShapeError(f"{what} is {got}; expected one number")
                continue
            dtype = self.dtype_of(value)
            if dtype != one.dtype:
                elsewhere = f"a {type(value).__name__} elsewhere, or not row-major"
                raise ShapeError(
                    f"{what} is {'of ' + dtype if dtype else elsewhere}; expected a row-major "
                    f"{self.framework} array of {one.dtype}"
                )
            if written := taken.get(id(value)):
                raise ShapeError(
                    f"{what} is the same array as {written}, which the kernel writes in place; "
                    "pass an array of its own for each"
                )
            if one.writes:
                taken[id(value)] = one.name
