"""What decides the text that MLX generates for a kernel."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlxhog.metal import source
from mlxhog.metal.kernel import Kernel

SMALL = 8
"""MLX passes arrays of fewer elements in `constant` space; engines pad inputs to this size."""

DTYPES = {"half": "float16", "bfloat": "bfloat16"}
"""MLX's names of the types that are template arguments."""


@dataclass(frozen=True)
class Request:
    """The arguments of `mx.fast.metal_kernel` and of its call, as far as they show in the text.

    Attributes:
        name: of the kernel.
        inputs: name, dtype and shape; the shape counts only by its size and number of dimensions.
        outputs: name and dtype.
        source: the body.
        header: text before the kernel.
        template: template arguments with MLX's names of types.
        atomic_outputs: outputs are declared atomic.
    """

    name: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str], ...]
    source: str
    header: str
    template: tuple[tuple[str, str], ...] = ()
    atomic_outputs: bool = False

    def plain(self) -> dict[str, Any]:
        """The same as JSON would hold it."""
        return asdict(self)


def of(kernel: Kernel, instance: str = "") -> Request:
    """Return the one request of a kernel's instance: scalars 0-d, arrays flat and not small."""
    return Request(
        name=kernel.name,
        inputs=tuple(
            (argument.name, argument.dtype, () if argument.scalar else (SMALL,))
            for argument in kernel.inputs
        ),
        outputs=tuple((argument.name, argument.dtype) for argument in kernel.outputs),
        source=kernel.source,
        header=source.read(kernel.header),
        template=(("T", DTYPES[instance]),) if instance else (),
    )
