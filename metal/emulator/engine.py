"""The emulator as a `MetalEngine`: the real Metal source on the CPU, labelled emulated."""

import ctypes
from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import MetalError, ShapeError
from mlxhog.metal.emulator import build, translate
from mlxhog.metal.engine import MetalEngine
from mlxhog.metal.kernel import Launch, MetalKernel, Size

MAX_THREADS = 1024
_MESSAGE_BYTES = 1024
FUZZ_PERIOD = 4
"""Under schedule fuzzing a thread yields once in this number of atomic operations, on average."""


class EmulatorEngine(MetalEngine):
    """Compiles kernels with a C++ compiler and runs them on OS threads; arrays are NumPy's.

    Args:
        fuzz: a seed; threads switch at random before atomic operations, and threadgroups run in
            random order. With one OS thread the same seed gives the same result.
        threads: OS threads that run threadgroups.
        cache: where texts and libraries are kept; default: this user's cache directory.
        compiler: a g++ or clang++.
        flags: more flags for it, such as "-fsanitize=undefined".

    Concurrency: several engines may run kernels at the same time, in threads or in processes, also
    on the same arrays: their atomic operations meet as they would on one GPU.
    """

    name, framework = "emulated", "NumPy"
    emulated = True

    def __init__(
        self,
        *,
        fuzz: int | None = None,
        threads: int = 2,
        cache: Path | None = None,
        compiler: str = "g++",
        flags: tuple[str, ...] = (),
    ) -> None:
        self.ran: set[str] = set()  # entries of kernels
        self._fuzz, self._threads = fuzz, threads
        self._cache = build.kernel_cache() if cache is None else cache
        self._compiler, self._flags = compiler, flags
        self._is_sanitized = any("sanitize" in flag for flag in flags)
        self._built: dict[tuple[MetalKernel, str], Path] = {}
        self._launches = 0

    def array(self, host: NDArray[Any]) -> NDArray[Any]:
        """Copy host values."""
        return host.copy()

    def wrap(self, host: NDArray[Any]) -> NDArray[Any]:
        """Return the host's own array."""
        return host

    def host(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array, which is the host's."""
        return array

    def dtype_of(self, value: Any) -> str | None:
        """The name of NumPy's type."""
        flat = isinstance(value, np.ndarray) and value.flags.c_contiguous
        return str(value.dtype) if flat else None

    def start(self, launch: Launch, threadgroup: Size) -> Sequence[NDArray[Any]]:
        """Run a compiled kernel; its outputs are filled with 0xff bytes before."""
        kernel = launch.kernel
        if (threads := prod(threadgroup)) > MAX_THREADS:
            raise MetalError(
                f"kernel {kernel.name}: a threadgroup of {threadgroup} is {threads} threads; "
                f"a GPU runs 1 to {MAX_THREADS}"
            )
        arrays = buffers(launch)
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        record = LaunchRecord(
            (ctypes.c_uint32 * 3)(*launch.grid),
            (ctypes.c_uint32 * 3)(*threadgroup),
            self._threads,
            kernel.uses_barriers,
            0 if self._fuzz is None else FUZZ_PERIOD,
            _MESSAGE_BYTES,
            ((self._fuzz or 0) << 32) + self._launches,
            ctypes.cast(message, ctypes.c_char_p),
        )
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        name = kernel.entry(launch.instance)
        run = _opened(self.built(kernel, launch.instance))[f"run_{name}"]
        if run(pointers, ctypes.byref(record)):  # other Python threads run meanwhile
            raise MetalError(f"kernel {kernel.name} failed: {message.value.decode()}")
        self._launches += 1
        self.ran.add(name)
        return arrays[len(kernel.inputs) :]

    def built(self, kernel: MetalKernel, instance: str = "") -> Path:
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
                is_watched=kernel.uses_barriers and not self._is_sanitized,
            )
        return self._built[kernel, instance]


def buffers(launch: Launch) -> list[NDArray[Any]]:
    """Return the arrays of a kernel by slot: inputs as they are, then outputs full of 0xff bytes.

    Raises:
        ShapeError: an array cannot be written in place.
    """
    arrays = []
    for one in launch.kernel.inputs:
        value = launch.inputs[one.name]
        if one.writes and not value.flags.writeable:
            raise ShapeError(
                f"kernel {launch.kernel.name}: {one.name} is read-only; the kernel writes it in "
                "place"
            )
        arrays.append(np.asarray(value).reshape(()).astype(one.dtype) if one.scalar else value)
    for one in launch.kernel.outputs:
        arrays.append(np.empty(launch.outputs[one.name], one.dtype))
        arrays[-1].reshape(-1).view(np.uint8).fill(0xFF)
    return arrays


class LaunchRecord(ctypes.Structure):
    """`metal_emulator::Launch`, field by field (`include/shim/launch.h`)."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("threads_per_threadgroup", ctypes.c_uint32 * 3),
        ("os_threads", ctypes.c_uint32),
        ("uses_barriers", ctypes.c_uint32),
        ("fuzz_period", ctypes.c_uint32),
        ("message_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("message", ctypes.c_char_p),
    )


@cache
def _opened(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
