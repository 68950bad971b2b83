"""The ways between host memory and the frameworks, tried in a process of their own."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, Final

from mlxhog.doctor.checks import Check, Result
from mlxhog.doctor.child import START_S, Child, Failed, Lane
from mlxhog.machine import Machine

BYTES: Final = 100 << 20
QUICK_BYTES: Final = 4 << 20


def examine(machine: Machine, *, quick: bool) -> list[Check]:
    """Try every way between the frameworks that are installed."""
    ways: list[tuple[str, str, tuple[int, ...]]] = []
    if "mlx" in machine.frameworks:
        ways.append(("memory of MLX", "imports_mlx", (QUICK_BYTES if quick else BYTES,)))
    if "torch" in machine.frameworks:
        ways.append(("memory of torch", "imports_torch", ()))
    if {"mlx", "torch"} <= machine.frameworks:
        ways.append(("memory of MLX and torch", "imports_mlx_torch", ()))
    return _tried(ways)


def _tried(ways: Iterable[tuple[str, str, tuple[int, ...]]]) -> list[Check]:
    """Run each module's `examine` in a child, which alone imports frameworks; a new one if it dies.

    Args:
        ways: what is tried, the module below `mlxhog.doctor`, and further arguments.
    """
    checks: list[Check] = []
    child: Child | None = None
    try:
        for what, module, args in ways:
            child = child or Child()
            try:
                checks += child.call(START_S, by_name, f"mlxhog.doctor.{module}:examine", *args)
            except Failed as failure:
                consequence = "how this memory is shared is not known: keep to the defaults"
                expected = "every way can be tried"
                checks.append(Check(what, Result.FAIL, str(failure), expected, consequence))
                child.close()
                child = None
    finally:
        if child is not None:
            child.close()
    return checks


def by_name(lane: Lane, target: str, *args: Any) -> list[Check]:
    """In a child: call `module:function`."""
    module, _, function = target.partition(":")
    found: list[Check] = getattr(importlib.import_module(module), function)(lane, *args)
    return found
