"""What runs Metal kernels: a protocol, and the one place that chooses among its implementations.

Names that `create` knows:

    mlx             MLX on an Apple GPU             `engine_mlx.py`
    mps             PyTorch on an Apple GPU         `engine_torch.py`
    emulated:mlx    the host shim, running the text that MLX would compile   `host/engine.py`
    emulated:mps    the host shim, running the whole kernels that PyTorch would compile
    reference       NumPy                           `engine_reference.py`
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from mlxhog.errors import ConfigError
from mlxhog.metal.kernel import Launch

NAMES = ("mlx", "mps", "emulated:mlx", "emulated:mps", "reference")


class Engine(Protocol):
    """Runs launches in order. Not thread-safe: the thread that made it uses it."""

    name: str
    emulated: bool

    def array(self, host: NDArray[Any]) -> Any:
        """Copy host values to the engine's own kind of array."""

    def adopt(self, host: NDArray[Any]) -> Any:
        """Return an array over the same memory, which the GPU reads and writes in place.

        Raises:
            EnvironmentLacks: this engine cannot import that address without a copy.
        """

    def host(self, array: Any) -> NDArray[Any]:
        """Wait for the array and return its values; where memory is shared, a view."""

    def run(self, launch: Launch) -> dict[str, Any]:
        """Launch a kernel and return its outputs by name.

        A kernel that writes an input has finished when this returns: the framework does not know
        of the write, so nothing else may be pending.

        Raises:
            ShapeError: an array of another dtype, layout or device than the kernel declares.
            MetalError: the kernel does not compile; the message shows the source line.
        """


def create(name: str, *, threads: int = 2) -> Engine:
    """Start an engine; imports its framework.

    Args:
        name: one of `NAMES`.
        threads: OS threads of an emulated one.

    Raises:
        ConfigError: unknown name.
        EnvironmentLacks: no Apple GPU, or (emulated) no C++ compiler.
    """
    if name == "mlx":
        from mlxhog.metal.engine_mlx import MLXEngine

        return MLXEngine()
    if name == "mps":
        from mlxhog.metal.engine_torch import MPSEngine

        return MPSEngine()
    if name.startswith("emulated:"):
        from mlxhog.metal.host.engine import HostEngine

        return HostEngine(name.partition(":")[2], threads=threads)
    if name == "reference":
        from mlxhog.metal.engine_reference import ReferenceEngine

        return ReferenceEngine()
    raise ConfigError(f"no Metal engine {name!r}; choose from {', '.join(NAMES)}")
