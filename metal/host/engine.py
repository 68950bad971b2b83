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
from mlxhog.metal import source
from mlxhog.metal.host import build, capture, library, request, translate, wrap
from mlxhog.metal.host.buffers import bound
from mlxhog.metal.host.signature import Signature, kernels
from mlxhog.metal.kernel import Kernel, Launch, Size

CONSUMERS = ("mlx", "mps")
MOST_THREADS = 1024
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
        self.ran: set[tuple[str, str, str]] = set()
        self._consumer, self._chaos, self._threads = consumer, chaos, threads
        self._cache = build.user_cache_directory() if cache is None else cache
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
            group=self._group(launch),
            threads=self._threads,
            lockstep=kernel.lockstep,
            chaos_period=0 if self._chaos is None else CHAOS_PERIOD,
            seed=((self._chaos or 0) << 32) + self._launches,
        )
        if failure:
            raise MetalError(f"{kernel.name} failed: {failure}")
        self._launches += 1
        self.ran.add((self._consumer, kernel.name, launch.instance))
        return outputs

    def built(self, kernel: Kernel, instance: str = "") -> tuple[Path, Signature]:
        """Compile a kernel unless that has been done, and say how it is called.

        Raises:
            MetalError: it does not compile; the message shows the source line.
        """
        if (kernel, instance) not in self._built:
            if self._consumer == "mlx":
                text = self.text(kernel, instance)
                (signature,) = kernels(text).values()
                stem = f"{kernel.name}-{instance}".rstrip("-")
                shown = _with_lines(text, kernel)
            else:
                name = f"{kernel.name}_{instance}".rstrip("_")
                file = str(Path(kernel.header).with_suffix(".metal"))
                shown, stem = source.read(file, lines=True), Path(file).stem
                found = kernels(shown)
                if name not in found:
                    raise MetalError(f"{file} has no kernel {name}; it has {', '.join(found)}")
                signature = found[name]
            path = build.library(
                stem,
                translate.library(shown, mlx=self._consumer == "mlx"),
                directory=self._cache,
                compiler=self._compiler,
                extra_flags=self._flags,
            )
            self._built[kernel, instance] = path, signature
        return self._built[kernel, instance]

    def text(self, kernel: Kernel, instance: str = "") -> str:
        """Return what MLX compiles, as it says itself; without MLX, as we state it."""
        wanted = request.of(kernel, instance)
        if capture.mlx_version():
            return capture.texts([wanted], self._cache)[0]
        return wrap.text(wanted)

    def _group(self, launch: Launch) -> Size:
        """Threads in a group: MLX keeps a group within the grid."""
        group = launch.group
        if self._consumer == "mlx":
            x, y, z = (min(pair) for pair in zip(launch.group, launch.grid, strict=True))
            group = (x, y, z)
        threads = group[0] * group[1] * group[2]
        if not 1 <= threads <= MOST_THREADS:
            raise MetalError(
                f"{launch.kernel.name}: a group of {group} is {threads} threads; "
                f"a GPU runs 1 to {MOST_THREADS}"
            )
        return group


def _with_lines(text: str, kernel: Kernel) -> str:
    """Say in MLX's text where its lines came from, for a compiler's messages."""
    wrapper = text.removeprefix(source.read(kernel.header))
    return f'{source.read(kernel.header, lines=True)}#line 1 "MLX kernel {kernel.name}"\n{wrapper}'
