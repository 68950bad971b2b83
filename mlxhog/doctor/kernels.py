"""The Metal kernels on each engine of an Apple GPU.

Those that write parameters are compared with NumPy one by one, those of the models as operators.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends import self_check
from mlxhog.base.machine import Machine
from mlxhog.base.verdicts import GPU_ENGINES
from mlxhog.base.workers import missing
from mlxhog.doctor.checks import Check, CheckResult, check
from mlxhog.metal import engine as engines
from mlxhog.metal.engine import ReferenceEngine
from mlxhog.metal.kernel import Launch
from mlxhog.metal.kernels.adds import dense_axpy
from mlxhog.metal.registry import KERNELS
from mlxhog.models.ops.kernels import choose

SIZE: Final = 10_007  # elements of a sample: not a multiple of any group
_COMPILE_S: Final = 120.0
_PAGE: Final = 16_384


def engines_of(machine: Machine) -> list[str]:
    """Return the names of this machine's Metal engines; none without an Apple GPU."""
    return [engine for name, engine in GPU_ENGINES.items() if missing(name, machine) is None]


def check_engine(name: str, tell: Callable[[str], None]) -> tuple[Check, list[dict[str, Any]]]:
    """Start an engine, let it write imported memory, and run every kernel on it.

    Args:
        name: argument of `mlxhog.metal.engine.create`.
        tell: called with each kernel.

    Returns:
        The check of the engine, and a row of the record per kernel that writes parameters, and per
        operator of the models; no rows if it does not start. One that ends its process is a row
        with `error`.
    """
    rows: list[dict[str, Any]] = []
    child = Child()
    try:
        try:
            problem = child.call(START_S + _COMPILE_S, write_imported, name)
        except Failed as failure:
            problem = str(failure)
        single = [kernel for kernel in KERNELS.values() if kernel.reference is not None]
        tolerances = {kernel.name: kernel.allowed(emulated=False) for kernel in single}
        tolerances |= dict.fromkeys(self_check.CHECKS, 0.0)
        for each, tolerance in tolerances.items() if not problem else ():
            tell(f"{each} on {name}")
            row: dict[str, Any] = {
                "name": each,
                "instance": "",
                "engine": name,
                "max_error": None,
                "tolerance": tolerance,
                "ok": False,
            }
            try:
                if each in KERNELS:
                    error = child.call(START_S + _COMPILE_S, difference, name, each)
                    row |= {"max_error": error, "ok": error <= tolerance}
                else:
                    fault = child.call(START_S + _COMPILE_S, operator_fault, name, each)
                    row |= {"error": fault} if fault else {"ok": True}
            except Failed as failure:
                row["error"] = str(failure)
                child.close()
                child = Child()
            rows.append(row)
    finally:
        child.close()
    started = check(
        f"Metal engine {name}",
        not problem,
        problem or "as expected",
        "starts, imports memory without a copy, adds in place",
        "no --gpu-write metal and no Metal kernels of ours here; MLX and torch work without",
        otherwise=CheckResult.WARN,
    )
    return started, rows


def write_imported(lane: Lane, name: str) -> str:
    """In a child: return an error of the engine, or ""."""
    engine = lane.keep(name, lambda: engines.create(name))
    host = np.frombuffer(mmap.mmap(-1, _PAGE), np.float32)
    arena = engine.adopt(host)
    host[:] = 1.0
    engine.run(dense_axpy(arena, engine.array(np.ones(64, np.float32)), scale=2.0, offset=32))
    expected = np.ones_like(host)
    expected[32:96] = 3.0
    wrong = int((host != expected).sum())
    return f"imported memory has {wrong} wrong values" if wrong else ""


def operator_fault(lane: Lane, name: str, operator: str) -> str:
    """In a child: return the fault of an operator of the models on an engine, or ""."""
    _, emulated, consumer = name.rpartition("emulated:")
    framework, device = {"mlx": ("mlx", "gpu"), "mps": ("torch", "mps")}[consumer]
    kernels, device = ("metal-emulated", "cpu") if emulated else ("metal", device)
    ops = choose(framework, kernels, device)
    return self_check.faults(framework, device, ops, threads=1, names=(operator,)).get(operator, "")


def difference(lane: Lane, name: str, kernel_name: str) -> float:
    """In a child: return the largest error of a kernel against its reference.

    The error is relative to the largest value of each array, if that is above 1. It is infinite if
    only one of the two is NaN.
    """
    engine = lane.keep(name, lambda: engines.create(name))
    sample = KERNELS[kernel_name].sample(np.random.default_rng(0), SIZE)
    expected, actual = (_results(each, sample) for each in (ReferenceEngine(), engine))
    return max(_error(actual[key], expected[key]) for key in expected)


def _results(engine: engines.Engine, sample: Launch) -> dict[str, NDArray[Any]]:
    """Run a launch on copies; returns its outputs and the inputs that it writes."""
    inputs = {
        argument.name: sample.inputs[argument.name]
        if argument.scalar
        else engine.array(sample.inputs[argument.name])
        for argument in sample.kernel.inputs
    }
    outputs = engine.run(replace(sample, inputs=inputs))
    written = {each.name: inputs[each.name] for each in sample.kernel.inputs if each.writes}
    return {key: np.array(engine.host(array)) for key, array in {**outputs, **written}.items()}


def _error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    different = (a != b) & ~np.isnan(a)
    largest = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    return float(np.abs(a[different] - b[different]).max(initial=0.0)) / largest
