"""Compute the results of every side, each backend in a child process of its own.

`computed_results` runs in the parent, `compute_side` in the child. Arrays travel by files in a
folder that is removed when the block ends, also by an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mlxhog.arena.child import Child, Failed, Lane
from mlxhog.backends import precision
from mlxhog.base import tensors
from mlxhog.errors import ConfigError, WorkerFailed
from mlxhog.parity import optimizers, results, tolerances
from mlxhog.parity.engines import FrameworkEngine, NumPyEngine
from mlxhog.parity.results import NamedArrays
from mlxhog.parity.subject import NUMPY, Array, ModelPlan, ParitySide, ParitySubject, Results
from mlxhog.report.views import TellStep

PATIENCE_S = 60.0  # for the rest of a message that has begun to arrive
INPUT, FIXED = "input/", "fixed/"
THREADS = 1


@dataclass(frozen=True)
class Perturbation:
    """Another value of an input, for one side."""

    side: str
    name: str
    value: Array


@contextmanager
def computed_results(
    subject: ParitySubject,
    sides: Sequence[ParitySide],
    perturbation: Perturbation | None,
    tell: TellStep,
) -> Iterator[dict[str, Results]]:
    """Compute the results of every side; their files exist until the block ends.

    Args:
        subject: of the computation.
        sides: that compute it; those of one backend follow each other.
        perturbation: another value of an input, for one side.
        tell: called with (side, "") when a side begins.

    Raises:
        ConfigError: the model cannot be computed, for example a layer of a plugin.
        WorkerFailed: a side could not compute it, or its process died; has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="mlxhog-parity-") as name, ExitStack() as stack:
        folder = Path(name)
        arrays, perturbed = folder / "arrays.safetensors", folder / "perturbed.safetensors"
        _save(arrays, {INPUT: subject.inputs, FIXED: subject.fixed})
        if perturbation is not None:
            _save(perturbed, {INPUT: {perturbation.name: perturbation.value}})
        running: dict[Any, tuple[Child, list[ParitySide]]] = {}
        orders: dict[str, list[str]] = {}

        def begin(child: Child, waiting: list[ParitySide]) -> None:
            side = waiting[0]
            tell(side.name, "")
            changed = perturbation is not None and perturbation.side == side.name
            files = [arrays, perturbed] if changed else [arrays]
            child.start(0, compute_side, side, subject.plan, files, _file(folder, side))

        for _, group in groupby(sides, lambda side: side.backend):
            child = stack.enter_context(Child())
            running[child.pipe] = child, list(group)
            begin(*running[child.pipe])
        while running:
            for pipe in connection.wait(list(running)):
                child, waiting = running[pipe]
                side = waiting.pop(0)
                orders[side.name] = _take(child, side)
                if waiting:
                    begin(child, waiting)
                else:
                    del running[pipe]
                    child.close()
        by_side: dict[str, Results] = {}
        for side in sides:
            values = tensors.read(_file(folder, side))
            by_side[side.name] = {name: values[name] for name in orders[side.name]}
        yield by_side


def _save(path: Path, parts: Mapping[str, Mapping[str, Array]]) -> None:
    save_file(
        {
            before + name: np.ascontiguousarray(value).reshape(np.shape(value))
            for before, part in parts.items()
            for name, value in part.items()
        },
        path,
    )


def _file(folder: Path, side: ParitySide) -> Path:
    return folder / f"{side.name.replace(':', '-')}.safetensors"


def _take(child: Child, side: ParitySide) -> list[str]:
    """Return the names of a side's results, which have arrived, in order."""
    try:
        names: list[str] = child.take(0, PATIENCE_S)
    except Failed as failure:
        problem = str(failure).removeprefix("ConfigError: ")  # for example of a plugin's layer
        kind = WorkerFailed if problem == str(failure) else ConfigError
        raise kind(f"{side.name} cannot compute it: {problem}") from failure
    return names


def compute_side(
    lane: Lane, side: ParitySide, plan: ModelPlan, files: Sequence[Path], target: Path
) -> list[str]:
    """Compute a side's results; returns their names in the order of the computation.

    Args:
        lane: of the child.
        side: that computes.
        plan: of the computation.
        files: the subject's arrays; those of a later file replace earlier ones.
        target: file to write.
    """
    arrays: dict[str, Array] = {}
    for file in files:
        arrays |= tensors.read(file)
    inputs = {k.removeprefix(INPUT): v for k, v in arrays.items() if k.startswith(INPUT)}
    fixed = {k.removeprefix(FIXED): v for k, v in arrays.items() if k.startswith(FIXED)}
    computed = dict(side_results(side, plan, inputs, fixed))
    _save(target, {"": computed})
    return list(computed)


def side_results(
    side: ParitySide, plan: ModelPlan, inputs: Mapping[str, Array], fixed: Mapping[str, Array]
) -> NamedArrays:
    """Compute a side's results in this process, those of NumPy with their conditions."""
    if side.backend == NUMPY:
        yield from precision.exact()
        yield from _reference(plan, inputs, fixed)
        return
    engine = engine_of(side)
    yield from precision_results(engine)
    steps = partial(optimizers.ours, plugins=plan.plugins)
    yield from results.model(engine, plan, inputs, fixed, steps)


def precision_results(engine: FrameworkEngine) -> NamedArrays:
    """Compute the probes of `mlxhog.backends.precision` by an engine."""
    for name, probe in precision.PROBES.items():
        yield name, engine.apply(probe.call, probe.inputs())


def _reference(
    plan: ModelPlan, inputs: Mapping[str, Array], fixed: Mapping[str, Array]
) -> NamedArrays:
    right = dict(exact(plan, inputs, fixed, tokenwise=True))
    yield from right.items()
    yield from tolerances.measure(right, inputs, lambda moved: exact(plan, moved, fixed))
    if any(name.startswith("grad/") for name in right):

        def gradients(engine: NumPyEngine, params: Mapping[str, Array]) -> dict[str, Array]:
            engine.load(plan.cfg, params)
            grads = engine.differentiate(fixed["tokens"], fixed["targets"])[1]
            return {name: np.asarray(grad) for name, grad in grads.items()}

        yield from tolerances.measure_noise(
            inputs,
            partial(gradients, NumPyEngine()),
            partial(gradients, NumPyEngine(rounded=True)),
        )


def exact(
    plan: ModelPlan,
    inputs: Mapping[str, Array],
    fixed: Mapping[str, Array],
    *,
    tokenwise: bool = False,
) -> NamedArrays:
    """Compute a model's results in float64; arguments as of `side_results`."""
    steps = optimizers.reference
    return results.model(NumPyEngine(), plan, inputs, fixed, steps, tokenwise=tokenwise)


def engine_of(side: ParitySide) -> FrameworkEngine:
    """Import the side's framework and start it."""
    return FrameworkEngine(side.backend, side.kernels, THREADS)
