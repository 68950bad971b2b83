"""Kernels and launches: the declaration of a Metal kernel, and its text.

`metal/kernels/` holds the kernels, a family in adjacent files: `adds.h` (functions in namespace
`mlxhog`) and `adds.py` (the declarations).
MLX writes the signature of a kernel around its `body` itself. `amalgamated_source` writes the same
text for PyTorch, `xcrun metal` and the emulator.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Size = tuple[int, int, int]
KERNEL_FOLDER = Path(__file__).parent / "kernels"
_OWN_INCLUDE = re.compile(r'^#include "([\w./]+)"\n', re.MULTILINE)
FUSED_RTOL = 1e-6
"""Tolerance of fused multiply-adds, 8 ulp: old Metal compilers ignore the pragma of `unfused.h`."""

TYPES = {
    "float32": "float", "bfloat16": "bfloat", "uint32": "uint32_t", "int32": "int32_t",
    "uint8": "uint8_t",
}  # fmt: skip
"""Metal's name of each type of an argument; bfloat is one from Metal 3.1 on (macOS 14)."""
ATTRIBUTES = {
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threads_per_threadgroup": "uint3",
}
"""Values that Metal sets for each thread, with their types, in MLX's order."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One parameter of a kernel.

    Attributes:
        name: as in the Metal source.
        dtype: NumPy's name, a key of `TYPES`.
        scalar: passed by value (0-d); otherwise a flat row-major array.
        writes: an input that the kernel writes in place, such as the arena.
    """

    name: str
    dtype: str = "float32"
    scalar: bool = False
    writes: bool = False


@dataclass(frozen=True, kw_only=True)
class MetalKernel:
    """A Metal kernel, which MLX wraps and PyTorch calls by name.

    Attributes:
        name: name of `mlxhog::<name>` in the header.
        header: file in `metal/kernels/` that the text of the kernel begins with.
        source: the one call of a kernel, which names its inputs and outputs, and what Metal sets
            for each thread (`ATTRIBUTES`).
        inputs: at least one array.
        outputs: at least one; fresh memory under MLX, whose values are undefined before the launch.
            Kernels that only write inputs have one output `done` uint32.
        instances: values of the constant `T` that are dispatched, numbers ("64"); empty for a
            kernel without it.
        variants: the same kernel for arrays of other types.
        uses_barriers: uses barriers or simdgroup functions.
        launch: from arrays by name, those that it does not take among them, and numbers; refuses
            shapes that do not fit each other (ShapeError).
        rtol: largest relative error between engines, of arrays with values of order 1.
            0 promises equal bits, from a compiler that knows the pragma in `unfused.h`.
    """

    name: str
    header: str
    source: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    launch: "Callable[..., Launch]"
    instances: tuple[str, ...] = ()
    variants: "tuple[MetalKernel, ...]" = ()
    uses_barriers: bool = False
    rtol: float = 0.0

    def body(self, instance: str = "") -> str:
        """The body of the kernel of an instance."""
        return f"constexpr int T = {instance};\n{self.source}" if instance else self.source

    def entry(self, instance: str = "") -> str:
        """The name by which PyTorch and the emulator find the kernel of an instance."""
        return f"{self.name}_{instance}" if instance else self.name

    @property
    def attributes(self) -> Mapping[str, str]:
        """What Metal sets for each thread and the kernel names: name -> type."""
        return {name: kind for name, kind in ATTRIBUTES.items() if name in self.source}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel with the arguments of one launch.

    Attributes:
        kernel: the kernel to run.
        inputs: by name: arrays of the engine, and Python numbers for scalars.
        outputs: shapes of the outputs by name.
        grid: number of threads (not of threadgroups) in x, y, z.
        threadgroup: threads in a threadgroup; the last threadgroups may be ragged, as under MLX.
        instance: one of the kernel's instances, "" if it has none.
    """

    kernel: MetalKernel
    inputs: Mapping[str, Any]
    outputs: Mapping[str, tuple[int, ...]]
    grid: Size
    threadgroup: Size = (256, 1, 1)
    instance: str = ""


@cache
def read_source(name: str, *, lines: bool = False) -> str:
    """Return the text of `metal/kernels/<name>`, with each of our own headers included once.

    PyTorch resolves includes of its own headers only, and MLX resolves none.

    Args:
        name: a file of that folder, or an absolute path.
        lines: add `#line` directives with the origin of every line, for a compiler's messages.
    """
    return _inlined(KERNEL_FOLDER / name, set(), lines)


def _inlined(path: Path, included: set[Path], lines: bool) -> str:
    if path in included:
        return ""
    included.add(path)
    text = path.read_text(encoding="utf-8").replace("#pragma once\n", "\n" if lines else "")

    def inner(match: re.Match[str]) -> str:
        own = _inlined(path.parent / match[1], included, lines)
        return own + _line_mark(text[: match.end()].count("\n") + 1, path) if lines else own

    return (_line_mark(1, path) if lines else "") + _OWN_INCLUDE.sub(inner, text)


def _line_mark(number: int, path: Path) -> str:
    return f'#line {number} "{path}"\n'


def amalgamated_source(kernel: MetalKernel, instance: str = "", *, lines: bool = False) -> str:
    """Return the text of a kernel with its header: what MLX compiles, but for the kernel's name.

    Source: the text that `mx.fast.metal_kernel` prints with `verbose`, MLX 0.32; a test compares.

    Args:
        kernel: the kernel.
        instance: one of its instances, "" if it has none.
        lines: as for `read_source`.
    """
    parameters = [
        f"const {'constant' if one.scalar else 'device'} {TYPES[one.dtype]}"
        f"{'&' if one.scalar else '*'} {one.name}"
        for one in kernel.inputs
    ]
    parameters += [f"device {TYPES[one.dtype]}* {one.name}" for one in kernel.outputs]
    places = [f"{parameter} [[buffer({slot})]]" for slot, parameter in enumerate(parameters)]
    places += [f"{kind} {name} [[{name}]]" for name, kind in kernel.attributes.items()]
    signature = ",\n  ".join(places)
    mark = f'#line 1 "kernel {kernel.name}"\n' if lines else ""
    return (
        f"{read_source(kernel.header, lines=lines)}{mark}"
        f"[[kernel]] void {kernel.entry(instance)}(\n  {signature}) {{\n"
        f"{kernel.body(instance)}\n}}\n"
    )


def number(argument: Argument, value: Any) -> int | float:
    """A scalar argument as the Python number of its declared dtype."""
    return float(value) if argument.dtype.startswith("float") else int(value)
