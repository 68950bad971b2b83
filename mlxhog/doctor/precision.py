"""Checks of the precision of every backend's float32, each in a process of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends import precision
from mlxhog.doctor.checks import Check, CheckResult, failed
from mlxhog.doctor.frameworks import PATIENCE_S
from mlxhog.machine import float32
from mlxhog.machine.load import LoadWatch
from mlxhog.machine.machine import Machine
from mlxhog.machine.verdicts import GPU_ENGINES
from mlxhog.machine.workers import BACKENDS, missing

EXPECTED: Final = ", ".join(f"{kind} within {most:.0e}" for kind, most in precision.ALLOWED.items())


def check_precision(machine: Machine, agreed: Collection[str]) -> list[Check]:
    """Measure each backend that can run here, with each form of the operators.

    Args:
        machine: this one.
        agreed: Metal engines on which every kernel agreed with its reference.
    """
    checks = []
    for name in BACKENDS:
        if missing(name, machine) is not None:
            continue  # the check of this backend says so
        forms = ["reference", "native"]
        if name in GPU_ENGINES:
            forms = ["reference", *["metal"] * (GPU_ENGINES[name] in agreed)]
        with Child() as child:
            checks += [_of(child, name, kernels) for kernels in forms]
    return checks


def _of(child: Child, name: str, kernels: str) -> Check:
    title, watch = f"float32 of {name}, kernels {kernels}", LoadWatch()
    consequence = float32.user_note() or (
        "models compute something else than float32 there: use another backend or --kernels, and "
        "`mlxhog parity tiny` shows which operators differ"
    )
    try:
        measured: precision.Precision = child.call(START_S + PATIENCE_S, measure, name, kernels)
    except Failed as failure:
        return failed(title, failure, EXPECTED, consequence, watch.look())
    if not measured.bad:
        return Check(title, CheckResult.PASS, str(measured), EXPECTED)
    found = f"{', '.join(measured.bad)} not exact enough: {measured}"
    return Check(title, CheckResult.FAIL, found, EXPECTED, consequence)


def measure(lane: Lane, name: str, kernels: str) -> precision.Precision:
    """In a child: measure the precision of a backend."""
    framework, _, device = name.partition(":")
    return precision.measure(framework, device, kernels)
