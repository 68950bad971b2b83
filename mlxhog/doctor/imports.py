"""The ways between host memory and the frameworks, tried in a process of their own."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.doctor.checks import Check, Result
from mlxhog.machine.machine import Machine

BYTES: Final = 100 << 20
QUICK_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Way:
    """Something to try in a child.

    Attributes:
        what: its name, should it end the child.
        target: function below `mlxhog.doctor`, as `module:function`, which returns checks.
        args: of the function.
        worst: what it means that the child ended.
        consequence: what follows from that.
    """

    what: str
    target: str
    args: tuple[int, ...] = ()
    worst: Result = Result.FAIL
    consequence: str = "how this memory is shared is not known: keep to the defaults"


def examine(machine: Machine, *, quick: bool) -> list[Check]:
    """Try every way between the frameworks that are installed."""
    ways: list[Way] = []
    nbytes = QUICK_BYTES if quick else BYTES
    if "mlx" in machine.frameworks:
        ways.append(Way("memory of MLX", "imports_mlx:examine", (nbytes,)))
    if "torch" in machine.frameworks:
        ways.append(Way("memory of torch", "imports_torch:examine"))
    if {"mlx", "torch"} <= machine.frameworks:
        ways.append(Way("memory of MLX and torch", "imports_mlx_torch:examine"))
    if "mlx" in machine.frameworks:  # last, since Metal may end the process over it
        ways.append(
            Way(
                "import of an unaligned address",
                "imports_mlx:unaligned",
                (nbytes,),
                Result.WARN,
                "none: mlxhog refuses such an address itself",
            )
        )
    return _tried(ways)


def _tried(ways: Iterable[Way]) -> list[Check]:
    """Try each way in a child, which alone imports frameworks; in a new one if it dies."""
    checks: list[Check] = []
    child: Child | None = None
    try:
        for way in ways:
            child = child or Child()
            try:
                checks += child.call(START_S, by_name, f"mlxhog.doctor.{way.target}", *way.args)
            except Failed as failure:
                expected = "every way can be tried"
                checks.append(Check(way.what, way.worst, str(failure), expected, way.consequence))
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
