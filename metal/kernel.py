"""What a Metal kernel is to Python: its arguments, the call that runs it, and its reference.

`metal/kernels/` holds the kernels, a family in adjacent files: `adds.h` (templated functions in
namespace `mlxhog`), `adds.metal` (whole kernels for PyTorch, `xcrun metal` and the host shim),
`adds.py` (the declarations, and functions that check arguments) and `adds_reference.py` (NumPy).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Size = tuple[int, int, int]
FUSED_RTOL = 1e-6  # eight units in the last place, of a few fused multiply-adds in a row


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One parameter of a kernel.

    Attributes:
        name: as in the Metal source.
        dtype: NumPy's name: "float32", "uint32", "int32", "uint8".
        scalar: passed by value (0-d); otherwise a flat row-major array.
        writes: an input that the kernel writes in place, such as the arena.
    """

    name: str
    dtype: str = "float32"
    scalar: bool = False
    writes: bool = False


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A Metal kernel, whole enough for MLX to wrap and for PyTorch to call by name.

    Attributes:
        name: of `mlxhog::<name>` in the header, and of the kernel in the `.metal` file.
        header: file in `metal/kernels/` that MLX gets as `header`; its `.metal` neighbour has the
            whole kernel, which takes inputs, then outputs, in this order.
        source: the one call that MLX wraps into a kernel.
        inputs: at least one array.
        outputs: at least one; fresh memory under MLX, whose values are undefined before the launch.
            Kernels that only write inputs have one output `done` uint32[1].
        instances: template arguments `T` that are dispatched, as Metal spells them ("half",
            "bfloat"); empty for a function without a template argument. PyTorch's kernel of an
            instance is `<name>_<instance>`.
        lockstep: uses barriers or simd-group functions.
        reference: the same in NumPy, arguments by name; writes outputs and written inputs in place.
            A kernel with instances gets the launch's as `instance`.
        sample: a typical launch of about n elements with random contents.
        rtol: largest relative error against the reference, of arrays with values of order 1.
            0 promises equal bits, from a compiler that knows the pragma in `unfused.h`.
        bytes_per_element: read and written in device memory by an update of one element, from the
            source; 0 for kernels that are not bound by memory.
    """

    name: str
    header: str
    source: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    reference: Callable[..., None]
    sample: Callable[[np.random.Generator, int], Launch]
    instances: tuple[str, ...] = ()
    lockstep: bool = False
    rtol: float = 0.0
    bytes_per_element: float = 0.0

    def allowed(self, *, emulated: bool) -> float:
        """The error that an engine may have: on a GPU at least that of fused operations.

        Metal fuses a product and a sum by default, and what `unfused.h` says to that is new. A GPU
        also flushes denormals, which is far below either.
        """
        return self.rtol if emulated else max(self.rtol, FUSED_RTOL)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel with everything one launch needs.

    Attributes:
        kernel: what to run.
        inputs: by name: the engine's own arrays, and Python numbers for scalars.
        outputs: shapes of the outputs by name.
        grid: number of threads (not of groups) in x, y, z.
        group: threads in a group; the last groups may be ragged, as under MLX.
        instance: one of the kernel's instances, "" where it has none.
    """

    kernel: Kernel
    inputs: Mapping[str, Any]
    outputs: Mapping[str, tuple[int, ...]]
    grid: Size
    group: Size = (256, 1, 1)
    instance: str = ""
