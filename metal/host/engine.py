"""The host shim as an `Engine`: the real Metal source on the CPU, labelled emulated.

The consumer is the framework by whose rules a kernel gets its arguments, "mlx" or "mps". The text
is the same for both (`kernel.whole_text`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, MetalError, ShapeError
from mlxhog.metal.host import build, translate
from mlxhog.metal.kernel import Argument, Kernel, Launch, Size, check

CONSUMERS = ("mlx", "mps")
SMALL = 8
"""MLX passes arrays of fewer elements in `constant` space; engines pad inputs to this size."""
MOST_THREADS = 1024
SLOTS = 31
_MESSAGE_BYTES = 1024
Ran = tuple[str, str, str]
"""Consumer, kernel and instance."""
CHAOS_PERIOD = 4
"""Under chaos a thread yields once in this number of atomic operations, on average."""


class HostEngine:
    """Compiles kernels with a C++ compiler and runs them on OS threads.

    Args:
        consumer: "mlx" or "mps".
        chaos: a seed; threads switch at random before atomic operations, and groups run in random
            order. With one OS thread the same seed gives the same result.
        threads: OS threads that run threadgroups.
        cache: where texts and libraries are kept; default: this user's cache directory.
        compiler: a g++ or clang++.
        flags: more flags for it, such as "-fsanitize=undefined".

    Raises:
        ConfigError: no such consumer.

    Concurrency: several engines may run kernels at the same time, in threads or in processes, also
    on the same arrays: their atomic operations meet as they would on one GPU.
    """

    emulated = True

    def __init__(
        self,
        consumer: str,
        *,
        chaos: int | None = None,
        threads: int = 2,
        cache: Path | None = None,
        compiler: str = "g++",
        flags: tuple[str, ...] = (),
    ) -> None:
        if consumer not in CONSUMERS:
            raise ConfigError(f"no consumer {consumer!r}; choose from {', '.join(CONSUMERS)}")
        self.name = f"emulated:{consumer}"
        self.ran: set[Ran] = set()
        self._consumer, self._chaos, self._threads = consumer, chaos, threads
        self._cache = build.kernel_cache() if cache is None else cache
        self._compiler, self._flags = compiler, flags
        self._built: dict[tuple[Kernel, str], Path] = {}
        self._launches = 0

    def array(self, host: NDArray[Any]) -> NDArray[Any]:
        """Copy host values."""
        return host.copy()

    def adopt(self, host: NDArray[Any]) -> NDArray[Any]:
        """Return the host's own array."""
        return host

    def host(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array, which is the host's."""
        return array

    def run(self, launch: Launch) -> dict[str, NDArray[Any]]:
        """Run a compiled kernel; its outputs are filled with 0xff bytes before."""
        check(launch, _flat_dtype, "NumPy")
        kernel = launch.kernel
        outputs = {
            one.name: np.zeros(launch.outputs[one.name], one.dtype) for one in kernel.outputs
        }
        if 0 in launch.grid:
            return outputs
        for array in outputs.values():
            array.reshape(-1).view(np.uint8).fill(0xFF)
        failure = call(
            self.built(kernel, launch.instance),
            kernel.entry(launch.instance),
            buffers(launch, outputs, mlx=self._consumer == "mlx"),
            grid=launch.grid,
            group=_group(launch),
            threads=self._threads,
            lockstep=kernel.lockstep,
            chaos_period=0 if self._chaos is None else CHAOS_PERIOD,
            seed=((self._chaos or 0) << 32) + self._launches,
        )
        if failure:
            raise MetalError(f"kernel {kernel.name} failed: {failure}")
        self._launches += 1
        self.ran.add((self._consumer, kernel.name, launch.instance))
        return outputs

    def built(self, kernel: Kernel, instance: str = "") -> Path:
        """Compile a kernel unless it is cached; return its library.

        Raises:
            MetalError: it does not compile; the message shows the source line.
        """
        if (kernel, instance) not in self._built:
            self._built[kernel, instance] = build.library(
                kernel.entry(instance),
                translate.program(kernel, instance),
                directory=self._cache,
                compiler=self._compiler,
                extra_flags=self._flags,
            )
        return self._built[kernel, instance]


def _group(launch: Launch) -> Size:
    """Threads in a group, at most the grid's, as in both frameworks."""
    x, y, z = (min(pair) for pair in zip(launch.group, launch.grid, strict=True))
    if not 1 <= x * y * z <= MOST_THREADS:
        raise MetalError(
            f"kernel {launch.kernel.name}: a group of {(x, y, z)} is {x * y * z} threads; "
            f"a GPU runs 1 to {MOST_THREADS}"
        )
    return x, y, z


def _flat_dtype(value: Any) -> str | None:
    flat = isinstance(value, np.ndarray) and value.flags.c_contiguous
    return str(value.dtype) if flat else None


def buffers(
    launch: Launch, outputs: Mapping[str, NDArray[Any]], *, mlx: bool
) -> list[NDArray[Any]]:
    """Return the arrays of a kernel by slot; arrays that it writes are the caller's own.

    Args:
        launch: with arguments that `kernel.check` has passed.
        outputs: fresh arrays by name.
        mlx: True for MLX's rules: an input of fewer than 8 elements is padded. False for PyTorch's:
            a number is passed as a 64-bit integer or a 32-bit float.

    Raises:
        ShapeError: a number does not fit, or an array cannot be written in place.
        MetalError: the kernel has more arguments than Metal has slots.
    """
    kernel = launch.kernel
    if (n := len(kernel.inputs) + len(kernel.outputs)) > SLOTS:
        raise MetalError(f"kernel {kernel.name} has {n} buffers; Metal has {SLOTS} slots")
    arrays = []
    for argument in kernel.inputs:
        value, what = launch.inputs[argument.name], f"kernel {kernel.name}: {argument.name}"
        if argument.scalar:
            arrays.append(_scalar(value, argument, what, mlx=mlx))
        else:
            arrays.append(_array(value, argument, what, mlx=mlx))
    return [*arrays, *outputs.values()]


def _scalar(value: Any, argument: Argument, what: str, *, mlx: bool) -> NDArray[Any]:
    dtype = np.dtype(argument.dtype)
    number = np.asarray(value).reshape(())
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= number <= limits.max or number != np.floor(number):
            raise ShapeError(f"{what} is {value}; expected a number that {dtype} can hold")
    if mlx or dtype.kind == "f":
        return number.astype(dtype)
    return number.astype(np.int64)  # Metal reads the low bytes


def _array(value: NDArray[Any], argument: Argument, what: str, *, mlx: bool) -> NDArray[Any]:
    if argument.writes and not value.flags.writeable:
        raise ShapeError(f"{what} is read-only; the kernel writes it in place")
    if not mlx or value.size >= SMALL:
        return value
    if argument.writes:
        raise ShapeError(
            f"{what} has {value.size} elements; MLX passes fewer than {SMALL} as constants, which "
            "a kernel cannot write"
        )
    padded = np.zeros(SMALL, value.dtype)
    padded[: value.size] = value.ravel()
    return padded


class LaunchRecord(ctypes.Structure):
    """`metal_host::Launch`, field by field (`include/shim/launch.h`)."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("os_threads", ctypes.c_uint32),
        ("lockstep", ctypes.c_uint32),
        ("chaos_period", ctypes.c_uint32),
        ("message_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("message", ctypes.c_char_p),
    )


@cache
def _opened(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def call(
    path: Path,
    name: str,
    buffers: Sequence[NDArray[Any]],
    *,
    grid: Size,
    group: Size,
    threads: int,
    lockstep: bool,
    chaos_period: int,
    seed: int,
) -> str:
    """Run a kernel to its end; other Python threads run meanwhile.

    Args:
        path: the library.
        name: name of the kernel.
        buffers: arrays by slot; the kernel uses their memory.
        grid: all threads.
        group: threads in a group, at most the grid's.
        threads: OS threads that run groups.
        lockstep: whether threads of a group may wait at barriers.
        chaos_period: threads are switched at one of this number of race points; 0 is never.
        seed: seed of chaos.

    Returns:
        "", or the reason of a failure, for example a barrier that never opens.
    """
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    record = LaunchRecord(
        (ctypes.c_uint32 * 3)(*grid),
        (ctypes.c_uint32 * 3)(*group),
        threads,
        lockstep,
        chaos_period,
        _MESSAGE_BYTES,
        seed,
        ctypes.cast(message, ctypes.c_char_p),
    )
    pointers = (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers))
    run = _opened(path)[f"run_{name}"]
    return message.value.decode() if run(pointers, ctypes.byref(record)) else ""
