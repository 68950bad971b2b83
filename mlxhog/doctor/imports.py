"""The ways between host memory and the frameworks, tried in a process of their own."""

from __future__ import annotations

import importlib
from typing import Any, Final

from mlxhog.doctor.checks import Check, Result
from mlxhog.doctor.child import START_S, Child, Failed, Lane
from mlxhog.machine import Machine

BYTES: Final = 100 << 20
QUICK_BYTES: Final = 4 << 20


def examine(machine: Machine, *, quick: bool) -> list[Check]:
    """Try every way between the frameworks that are installed."""
    checks: list[Check] = []
    if "mlx" in machine.frameworks:
        checks += _tried("memory of MLX", "imports_mlx", QUICK_BYTES if quick else BYTES)
    if "torch" in machine.frameworks:
        checks += _tried("memory of torch", "imports_torch")
    if {"mlx", "torch"} <= machine.frameworks:
        checks += _tried("memory of MLX and torch", "imports_mlx_torch")
    return checks


def _tried(what: str, module: str, *args: Any) -> list[Check]:
    """Run a module's `examine` in a child, which alone imports the framework."""
    try:
        with Child() as child:
            return child.call(START_S, by_name, f"mlxhog.doctor.{module}:examine", *args)
    except Failed as failure:
        consequence = "how memory is shared with this framework is not known: keep to the defaults"
        return [Check(what, Result.FAIL, str(failure), "every way can be tried", consequence)]


def by_name(lane: Lane, target: str, *args: Any) -> list[Check]:
    """In a child: call `module:function`."""
    module, _, function = target.partition(":")
    found: list[Check] = getattr(importlib.import_module(module), function)(lane, *args)
    return found
