"""What every engine checks of a launch before its framework sees it, and what a failure says."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

from mlxhog.errors import MetalError, ShapeError
from mlxhog.metal.kernel import Argument, Launch

# The Metal compiler's first complaint, with the lines that show the source: text, then a caret.
_COMPLAINT = re.compile(r"\S*?(\d+):\d+: error: .*(?:\n(?!\S*?\d+:\d+: ).*){0,2}")


def check(launch: Launch, flat_dtype: Callable[[Any], str | None], framework: str) -> None:
    """Refuse a launch whose arguments are not those that its kernel declares.

    Args:
        launch: what is about to run.
        flat_dtype: NumPy's name of an array's dtype; None for what is no array of the framework
            on the right device, or not row-major.
        framework: whose arrays are wanted, for the message.

    Raises:
        ShapeError: an argument is missing, unknown, or of another kind; nothing has run.
    """
    kernel = launch.kernel
    for given, declared in ((launch.inputs, kernel.inputs), (launch.outputs, kernel.outputs)):
        names = [argument.name for argument in declared]
        if sorted(given) != sorted(names):
            raise ShapeError(
                f"kernel {kernel.name} got {', '.join(given) or 'nothing'}; "
                f"wanted {', '.join(names)}"
            )
    instances = kernel.instances or ("",)
    if launch.instance not in instances:
        raise ShapeError(
            f"kernel {kernel.name} has no instance {launch.instance!r}; "
            f"wanted one of {', '.join(map(repr, instances))}"
        )
    for argument in kernel.inputs:
        _check_input(kernel.name, argument, launch.inputs[argument.name], flat_dtype, framework)


def _check_input(
    kernel: str,
    argument: Argument,
    value: Any,
    flat_dtype: Callable[[Any], str | None],
    framework: str,
) -> None:
    if argument.scalar:
        shape = tuple(getattr(value, "shape", ()))
        if not hasattr(value, "__float__") or prod(shape) != 1:
            got = f"an array of shape {shape}" if shape else repr(value)
            raise ShapeError(f"kernel {kernel}: {argument.name} is {got}; wanted one number")
        return
    dtype = flat_dtype(value)
    if dtype != argument.dtype:
        got = f"of {dtype}" if dtype else f"a {type(value).__name__} elsewhere, or not row-major"
        raise ShapeError(
            f"kernel {kernel}: {argument.name} is {got}; wanted a row-major {framework} array "
            f"of {argument.dtype}"
        )


def number(argument: Argument, value: Any) -> int | float:
    """A scalar argument as the Python number of its declared dtype."""
    return float(value) if argument.dtype.startswith("float") else int(value)


def too_wide(launch: Launch, error: Exception) -> MetalError:
    """The error of a group with more threads than the compiled kernel allows.

    How many that are depends on the registers that it needs, and on the chip.
    """
    x, y, z = (min(sizes) for sizes in zip(launch.group, launch.grid, strict=True))
    return MetalError(
        f"kernel {launch.kernel.name} cannot run in groups of {x} x {y} x {z} threads on this GPU: "
        f"{error}; use --kernels reference and --gpu-write cpu"
    )


def compile_error(launch: Launch, error: Exception, source: str | None = None) -> MetalError:
    """The error of a kernel that the framework could not compile or run.

    Args:
        launch: what did not run.
        error: the framework's own, with the Metal compiler's log.
        source: the text that was compiled, where line numbers in the log count its lines.
    """
    log = str(error)
    found = _COMPLAINT.search(log)
    if found is None:
        return MetalError(f"kernel {launch.kernel.name} failed: {log}")
    line = int(found[1]) - 1
    lines = source.splitlines() if source else []
    shown = f"\n  {line + 1}: {lines[line].strip()}" if line < len(lines) else ""
    return MetalError(
        f"kernel {launch.kernel.name} ({launch.kernel.header}) does not compile: "
        f"{found[0].rstrip()}{shown}"
    )
