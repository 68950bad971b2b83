"""The host shim behind the `Engine` protocol: genuine Metal source on the CPU, labelled emulated.

The consumer says whose text is run. "mlx": the text MLX generates around a kernel's one call, with
MLX's rules for arguments. "mps": the whole kernels that PyTorch compiles, called by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.errors import ConfigError, MetalError
from mlxhog.metal.host import build, library
from mlxhog.metal.host.buffers import bound
from mlxhog.metal.host.consumers import CONSUMERS
from mlxhog.metal.host.signature import Signature
from mlxhog.metal.kernel import Kernel, Launch, Size, check

MOST_THREADS = 1024
Ran = tuple[str, str, str]
"""Consumer, kernel and instance."""
CHAOS_PERIOD = 4
"""Under chaos a thread gives way at every so many atomic operations, on average."""


class HostEngine:
    """Compiles kernels with a C++ compiler and runs them on OS threads.

    Args:
        consumer: "mlx" or "mps".
        chaos: a seed; threads switch at random before atomic operations, groups run in random
            order and compare-exchange fails for no reason. With one OS thread the same seed gives
            the same result.
        threads: OS threads that run threadgroups.
        cache: where texts and libraries are kept; default: this user's cache directory.
        compiler: a g++ or clang++ that knows `_Float16`.
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
        self._built: dict[tuple[Kernel, str], tuple[Path, Signature]] = {}
        self._launches = 0

    def array(self, host: NDArray[Any]) -> NDArray[Any]:
        """See `Engine.array`."""
        return host.copy()

    def adopt(self, host: NDArray[Any]) -> NDArray[Any]:
        """See `Engine.adopt`."""
        return host

    def host(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Engine.host`."""
        return array

    def run(self, launch: Launch) -> dict[str, NDArray[Any]]:
        """See `Engine.run`. Outputs are filled with 0xff bytes before the launch."""
        check(launch, _flat_dtype, "NumPy")
        kernel = launch.kernel
        outputs = {
            argument.name: np.zeros(launch.outputs[argument.name], argument.dtype)
            for argument in kernel.outputs
        }
        if 0 in launch.grid:
            return outputs
        for array in outputs.values():
            array.reshape(-1).view(np.uint8).fill(0xFF)
        path, signature = self.built(kernel, launch.instance)
        failure = library.call(
            path,
            signature.name,
            bound(launch, signature, outputs, mlx=self._consumer == "mlx"),
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

    def built(self, kernel: Kernel, instance: str = "") -> tuple[Path, Signature]:
        """Compile a kernel unless that has been done, and say how it is called.

        Raises:
            MetalError: it does not compile; the message shows the source line.
        """
        if (kernel, instance) not in self._built:
            program = CONSUMERS[self._consumer](kernel, instance, self._cache)
            path = build.library(
                program.name,
                program.text,
                directory=self._cache,
                compiler=self._compiler,
                extra_flags=self._flags,
            )
            self._built[kernel, instance] = path, program.signature
        return self._built[kernel, instance]


def _group(launch: Launch) -> Size:
    """Threads in a group, which both frameworks keep within the grid."""
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
