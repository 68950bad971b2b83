"""Every Metal kernel against its NumPy reference on every engine, and against MLX's text of it.

Operators of models are compared with the plain ones, too, as a worker does when it starts.
"""

from __future__ import annotations

import mmap
import re
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends import self_check
from mlxhog.doctor.checks import Check, CheckResult, absent, check
from mlxhog.errors import MlxhogError
from mlxhog.machine.machine import Machine
from mlxhog.machine.verdicts import GPU_ENGINES, NONE
from mlxhog.machine.workers import missing
from mlxhog.metal import engine as engines
from mlxhog.metal.engine import ReferenceEngine
from mlxhog.metal.host import build, mlx_text
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels.adds import dense_axpy
from mlxhog.metal.registry import KERNELS, instances
from mlxhog.models.ops.kernels import choose

SIZE: Final = 10_007  # elements of a sample: not a multiple of any group
_COMPILE_S: Final = 120.0
_PAGE: Final = 16_384


class Engines:
    """The engines of this machine, each in a process that can be replaced.

    Args:
        names: arguments of `mlxhog.metal.engine.create`.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._children: dict[str, Child] = {}

    def start(self) -> tuple[list[Check], list[str]]:
        """Start each engine and let it write imported memory; return checks and usable engines."""
        checks: list[Check] = []
        usable: list[str] = []
        for name in self.names:
            expected = "starts, imports memory without a copy, adds in place"
            try:
                problem = self._child(name).call(START_S + _COMPILE_S, write_imported, name)
            except Failed as failure:
                problem = str(failure)
                self._give_up(name)
            checks.append(
                check(
                    f"Metal engine {name}",
                    not problem,
                    problem or "as expected",
                    expected,
                    _consequence(name),
                    otherwise=CheckResult.WARN,
                )
            )
            usable += [] if problem else [name]
        return checks, usable

    def compare(self, engine: str, kernel: Kernel, instance: str) -> dict[str, Any]:
        """Run a kernel on an engine and on NumPy; returns a row of the record."""
        emulated = engine.startswith("emulated:")
        row: dict[str, Any] = {
            "name": kernel.name,
            "instance": instance,
            "engine": engine,
            "ran": False,
            "max_error": None,
            "tolerance": kernel.allowed(emulated=emulated),
            "ok": False,
            "emulated": emulated,
        }
        try:
            error = self._child(engine).call(
                START_S + _COMPILE_S, difference, engine, kernel.name, instance
            )
            row |= {"ran": True, "max_error": error, "ok": error <= row["tolerance"]}
        except Failed as failure:
            row["error"] = str(failure)
            self._give_up(engine)
        return row

    def _child(self, name: str) -> Child:
        if name not in self._children:
            self._children[name] = Child()
        return self._children[name]

    def _give_up(self, name: str) -> None:
        self._children.pop(name).close()

    def close(self) -> None:
        """End every process."""
        for name in list(self._children):
            self._give_up(name)


def _consequence(engine: str) -> str:
    if engine.startswith("emulated:"):
        return "no Metal source is tested on it here"
    return "no --gpu-write metal and no Metal kernels of ours here; MLX and torch work without"


def write_imported(lane: Lane, name: str) -> str:
    """In a child: return an error of the engine, or ""."""
    engine = lane.keep(name, lambda: engines.create(name))
    host = np.frombuffer(mmap.mmap(-1, _PAGE), np.float32)
    arena = engine.adopt(host)
    host[:] = 1.0
    engine.run(dense_axpy(arena, engine.array(np.ones(64, np.float32)), scale=2.0, offset=32))
    expected = np.ones_like(host)
    expected[32:96] = 3.0
    if not np.array_equal(host, expected):
        return f"imported memory has {int((host != expected).sum())} wrong values"
    return ""


def difference(lane: Lane, name: str, kernel_name: str, instance: str) -> float:
    """In a child: return the largest error of a kernel against its reference.

    The error is relative to the largest value of each array, if that is above 1. It is infinite if
    only one of the two is NaN.
    """
    engine = lane.keep(name, lambda: engines.create(name))
    kernel = KERNELS[kernel_name]
    rng = np.random.default_rng(0)
    sample = replace(kernel.sample(rng, SIZE), instance=instance)
    expected = _results(ReferenceEngine(), sample)
    actual = _results(engine, sample)
    return max(_error(actual[key], expected[key]) for key in expected)


def _results(engine: engines.Engine, sample: Launch) -> dict[str, NDArray[Any]]:
    """Run a launch on copies; returns its outputs and the inputs that it writes."""
    kernel = sample.kernel
    inputs = {
        argument.name: sample.inputs[argument.name]
        if argument.scalar
        else engine.array(sample.inputs[argument.name])
        for argument in kernel.inputs
    }
    outputs = engine.run(replace(sample, inputs=inputs))
    written = {argument.name for argument in kernel.inputs if argument.writes}
    return {
        key: np.array(engine.host(array))
        for key, array in {**outputs, **{key: inputs[key] for key in written}}.items()
    }


def _error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    same = (a == b) | np.isnan(a)
    if same.all():
        return 0.0
    largest = max(1.0, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    return float(np.abs(a[~same] - b[~same]).max()) / largest


# -- operators of models on a GPU ------------------------------------------------------------------


def check_operators(machine: Machine, usable: Collection[str]) -> Iterator[Check]:
    """Check the operators with Metal kernels on each GPU backend, as its workers do.

    Args:
        machine: this one.
        usable: engines that work here.
    """
    expected = ", ".join(self_check.CHECKS) + " agree with the plain operators, gradients too"
    for name, engine in GPU_ENGINES.items():
        if engine not in usable or missing(name, machine) is not None:
            continue  # other checks say so
        title = f"Metal operators of {name}"
        with Child() as child:
            try:
                faults = child.call(START_S + _COMPILE_S, operator_faults, name)
            except Failed as failure:
                faults = {"all": str(failure)}
        yield check(
            title,
            not faults,
            "; ".join(f"{operator}: {fault}" for operator, fault in faults.items()) or "they agree",
            expected,
            "with --kernels auto workers compute these by the plain operators",
            otherwise=CheckResult.WARN,
        )


def operator_faults(lane: Lane, name: str) -> dict[str, str]:
    """In a child: return the faults of a worker's check."""
    framework, _, device = name.partition(":")
    ops = choose(framework, "metal", device)
    return self_check.faults(framework, device, ops, threads=1)


# -- MLX's text of the kernels ---------------------------------------------------------------------


def check_mlx_text() -> Check:
    """Compare MLX's text of every kernel with the one that our statement of its rules gives."""
    name, expected = "MLX's text of our kernels", "the text that was emulated and tested"
    if not mlx_text.mlx_version():
        return absent(name, f"mlx is {NONE}", expected)
    requests = [mlx_text.request_of(kernel, instance) for kernel, instance in instances()]
    consequence = "emulated results prove less: this MLX passes arguments in another way"
    try:
        texts = mlx_text.captured(requests, build.kernel_cache())
    except (MlxhogError, subprocess.TimeoutExpired) as error:
        return Check(name, CheckResult.WARN, str(error), expected, consequence)
    others = [
        each.name
        for each, text in zip(requests, texts, strict=True)
        if _words(text) != _words(mlx_text.stated(each))
    ]
    agreement = f"{len(requests) - len(others)} of {len(requests)} equal, up to spaces and names"
    if others:
        agreement += f"; not {', '.join(others)}"
    return check(name, not others, agreement, expected, consequence, otherwise=CheckResult.WARN)


def _words(text: str) -> list[str]:
    """Return the words of a text, without white space and the name that MLX generates."""
    return re.sub(r"custom_kernel_\w+", "custom_kernel", text).split()
