"""Metal kernels through `mx.fast.metal_kernel`: MLX wraps a call of ours into a kernel of its own.

MLX has no inputs that are written in place, and orders kernels only by their declared outputs. So
such a launch waits for its inputs, runs alone, and the caller waits for its end. An operation on a
written array that is not evaluated yet reads it after the launch: evaluate it first. Other launches
stay lazy, like operations of MLX: the models' forward passes need this.

MLX compiles a kernel when it evaluates the first launch, and its error does not say which kernel it
is. So before the first lazy launch one threadgroup of the kernel runs on zeros, at once.

Host memory becomes an MLX array without a copy (`wrap`): MLX wraps the pages in a Metal buffer.
`wrappable` tells whether it fits. Versions of MLX that may reuse a wrapped buffer for
the result of an operation ("donation") are refused.

Source: MLX documentation, "Custom Metal Kernels"; donation and tracking: mlx issues 2547, 3872.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxhog.base.resources import shortage
from mlxhog.errors import EnvironmentLacks, MetalError, is_lost_gpu
from mlxhog.metal.engine import MetalEngine
from mlxhog.metal.kernel import Argument, Launch, MetalKernel, Size, number, read_source

SMALLEST = 8  # MLX passes shorter arrays in another address space, as another kernel


class MLXEngine(MetalEngine):
    """Runs launches on the Apple GPU; arrays are MLX arrays.

    A kernel that writes an input cannot run inside `mx.compile`, `mx.grad` or `mx.vmap`, which
    would run it at another time, or not at all.
    """

    name, framework = "mlx", "MLX"

    def __init__(self) -> None:
        """Build nothing yet: each kernel is made at its first launch, and kept.

        Raises:
            EnvironmentLacks: MLX sees no Apple GPU.
        """
        if not mx.metal.is_available():
            raise EnvironmentLacks(
                "Metal kernels need an Apple GPU, and MLX sees none; use --gpu-write cpu, or "
                "metal-emulated to try them out"
            )
        self._kernels: dict[str, Any] = {}
        self._tried = set[tuple[str, Size]]()  # entries and threadgroups that have run

    def array(self, host: NDArray[Any]) -> mx.array:
        """Copy host values to an MLX array."""
        return mx.array(host)

    def wrap(self, host: NDArray[Any]) -> mx.array:
        """Import host memory as an MLX array without a copy."""
        return wrap(host)

    def host(self, array: mx.array) -> NDArray[Any]:
        """Evaluate an MLX array; return a view of it."""
        mx.eval(array)
        return np.array(array, copy=False)

    def dtype_of(self, value: Any) -> str | None:
        """Any array of MLX will do, which copies what is not row-major."""
        return str(value.dtype).removeprefix("mlx.core.") if isinstance(value, mx.array) else None

    def start(self, launch: Launch, threadgroup: Size) -> list[mx.array]:
        """Launch a kernel, lazily unless it writes an input."""
        kernel = launch.kernel
        inputs = [_input(one, launch.inputs[one.name]) for one in kernel.inputs]
        in_place = any(one.writes for one in kernel.inputs)
        how = {
            "threadgroup": threadgroup,
            "output_shapes": [launch.outputs[one.name] for one in kernel.outputs],
            "output_dtypes": [_dtype(one.dtype) for one in kernel.outputs],
        }
        run = self._kernel(kernel, launch.instance)
        tried = kernel.entry(launch.instance), threadgroup
        if in_place:
            _finish(launch, inputs)
        elif tried not in self._tried:
            zeros = [x if x.ndim == 0 else mx.zeros(x.shape, x.dtype) for x in inputs]
            mx.eval(*run(inputs=zeros, grid=threadgroup, **how))
            self._tried.add(tried)
        outputs = run(inputs=inputs, grid=launch.grid, **how)
        if in_place:
            mx.eval(outputs)
        return cast(list[mx.array], outputs)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Name the kernels in an error of MLX in the block, which evaluates their launches.

        Lack of memory and a lost GPU are no kernel's fault.

        Raises:
            MetalError: the evaluation failed; the kernels are those in MLX's text, else all so far.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            named = [name for name in self._kernels if name in str(error)] or [*self._kernels]
            if not named or shortage(error) or is_lost_gpu(error):
                raise
            names = "kernel " + named[0] if len(named) == 1 else "one of " + ", ".join(named)
            raise MetalError(f"{names} failed when MLX evaluated it: {error}") from error

    def _kernel(self, kernel: MetalKernel, instance: str) -> Any:
        name = kernel.entry(instance)
        if name not in self._kernels:
            self._kernels[name] = mx.fast.metal_kernel(
                name=f"mlxhog_{name}",
                input_names=[one.name for one in kernel.inputs],
                output_names=[one.name for one in kernel.outputs],
                source=kernel.body(instance),
                header=read_source(kernel.header),
                ensure_row_contiguous=True,
            )
        return self._kernels[name]


def _input(argument: Argument, value: Any) -> mx.array:
    """An input for MLX: a scalar as a 0-d array, so not compiled in; a short array zero-padded."""
    if not argument.scalar:
        if argument.writes or value.size >= SMALLEST:
            return cast(mx.array, value)
        return mx.pad(value.reshape(-1), (0, SMALLEST - value.size))
    dtype = _dtype(argument.dtype)
    if isinstance(value, mx.array):  # the result of an earlier kernel, maybe lazy
        return value.reshape(()).astype(dtype)
    return mx.array(number(argument, value), dtype)


def wrap(host: NDArray[Any]) -> mx.array:
    """Return a flat MLX array over the memory of `host`, which stays alive as long as the array.

    Never write it with `+=`, item assignment or `.at[]`: kernels and the host write this memory.

    Args:
        host: a segment of an arena, see `mlxhog.metal.engines.wrappable`.

    Raises:
        EnvironmentLacks: MLX cannot share this memory here, returned other or less memory, or may
            reuse it.
    """
    if not refuses_donation():
        raise EnvironmentLacks(
            "this MLX may write results of its own into imported memory: is_owned is missing in "
            "its mlx/array.h; python -m pip install 'mlx>=0.32.4'"
        )
    try:
        wrapped = mx.asarray(host, copy=False)
    except ValueError as error:
        raise EnvironmentLacks(
            f"MLX cannot import {host.nbytes} bytes at {host.ctypes.data:#x} without a copy "
            f"({error}); use --read snapshot and --gpu-write cpu here"
        ) from error
    mx.eval(wrapped)
    view = np.array(wrapped, copy=False)
    if (view.ctypes.data, view.nbytes) != (host.ctypes.data, host.nbytes):
        raise EnvironmentLacks(
            f"MLX made {view.nbytes:,} bytes at {view.ctypes.data:#x} of {host.nbytes:,} bytes at "
            f"{host.ctypes.data:#x}, so it did not import them; use --read snapshot and "
            "--gpu-write cpu here"
        )
    return wrapped


@cache
def refuses_donation() -> bool:
    """Whether this MLX never writes a result into memory that it does not own (since 0.32.4).

    Only the library's header tells.
    """
    header = Path(mx.__file__).parent / "include" / "mlx" / "array.h"
    return header.is_file() and "is_owned" in header.read_text(encoding="utf-8", errors="replace")


def _finish(launch: Launch, inputs: list[mx.array]) -> None:
    """Wait for all inputs, so that the launch is the only thing that runs."""
    try:
        mx.eval(inputs)
    except ValueError as error:
        raise MetalError(
            f"kernel {launch.kernel.name} writes its inputs in place, so it cannot run inside "
            "mx.compile or another transformation; launch it after mx.eval of the gradients"
        ) from error
    for argument, value in zip(launch.kernel.inputs, inputs, strict=True):
        if argument.writes and not memoryview(cast(Any, value)).c_contiguous:
            raise MetalError(
                f"kernel {launch.kernel.name} would write a copy of {argument.name}, which is not "
                "contiguous; pass the whole flat array and an offset"
            )


def _dtype(name: str) -> mx.Dtype:
    return cast(mx.Dtype, getattr(mx, name))
