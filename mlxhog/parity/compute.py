"""Compute the results of every side, each backend in a child process of its own.

`computed_results` runs in the parent, `compute_side` in the child. Arrays travel by files in a
folder that is removed when the block ends, also by an error. Processes are spawned and end with
their parent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mlxhog.arena.child import Child, Failed, Lane
from mlxhog.backends import precision
from mlxhog.base import tensors
from mlxhog.errors import ConfigError, WorkerFailed
from mlxhog.parity import operators, optimizers, results, tolerances
from mlxhog.parity.engines import FrameworkEngine, NumPyEngine
from mlxhog.parity.subject import (
    NUMPY,
    PEERS,
    Array,
    ModelPlan,
    ParitySide,
    ParitySubject,
    Results,
)
from mlxhog.report.views import TellStep

PATIENCE_S = 60.0  # for the rest of a message that has begun to arrive
INPUT, FIXED = "input/", "fixed/"
PERTURBED = "perturbed.safetensors"
THREADS = 1
LOOK_S = 1.0  # between two looks at what the sides compute
STAGE = ".stage"  # of the file that says what a side computes now


@dataclass(frozen=True)
class Perturbation:
    """Another value of an input, for one side."""

    side: str
    name: str
    value: Array


@dataclass
class _Task:
    """A child, its waiting sides, and the one that it computes now."""

    waiting: list[ParitySide]
    child: Child
    now: ParitySide | None = field(default=None)


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
        tell: called with (side, step) when a side begins, and then every second with that side
            and what all sides compute.

    Raises:
        ConfigError: the model cannot be computed, for example a layer of a plugin.
        WorkerFailed: a side could not compute it, or its process died; has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="mlxhog-parity-") as name, ExitStack() as stack:
        folder = Path(name)
        arrays = folder / "arrays.safetensors"
        save_file(_flat(subject), arrays)
        if perturbation is not None:
            save_file({INPUT + perturbation.name: perturbation.value}, folder / PERTURBED)
        groups = [list(group) for _, group in groupby(sides, lambda side: side.backend)]
        running: dict[Any, _Task] = {}
        orders: dict[str, list[str]] = {}
        latest = ""

        def begin(task: _Task) -> None:
            """Start the next side of a child, or end the child."""
            nonlocal latest
            task.now = task.waiting.pop(0) if task.waiting else None
            if task.now is None:
                del running[task.child.pipe]
                task.child.close()
                return
            side = task.now
            latest = side.name
            tell(latest, "")
            changed = perturbation is not None and perturbation.side == side.name
            replacements = folder / PERTURBED if changed else None
            target = _file(folder, side)
            task.child.start(0, compute_side, side, subject.plan, arrays, replacements, target)

        for group in reversed(groups):  # peers, which take longest to import, first
            task = _Task(group, stack.enter_context(Child()))
            running[task.child.pipe] = task
            begin(task)
        while running:
            ready = connection.wait(list(running), LOOK_S)
            for pipe in ready:
                task = running[pipe]
                side, names = _take(task)
                orders[side.name] = names
                begin(task)
            if not ready:
                tell(latest, ", ".join(_stage(folder, task) for task in running.values()))
        by_side: dict[str, Results] = {}
        for side in sides:
            values = tensors.read(_file(folder, side))
            by_side[side.name] = {name: values[name] for name in orders[side.name]}
        yield by_side


def _flat(subject: ParitySubject) -> dict[str, Array]:
    inputs = {INPUT + name: value for name, value in subject.inputs.items()}
    fixed = {FIXED + name: value for name, value in subject.fixed.items()}
    return {
        name: np.ascontiguousarray(value).reshape(value.shape)
        for name, value in (inputs | fixed).items()
    }


def _file(folder: Path, side: ParitySide) -> Path:
    return folder / f"{side.name.replace(':', '-')}.safetensors"


def _stage(folder: Path, task: _Task) -> str:
    """Say which side a child computes, and what of it."""
    assert task.now is not None
    stage = _file(folder, task.now).with_suffix(STAGE)
    return f"{task.now.name}: {stage.read_text() if stage.exists() else 'begins'}"


def _take(task: _Task) -> tuple[ParitySide, list[str]]:
    """Return the side whose results have arrived, and their names in order."""
    assert task.now is not None
    try:
        names: list[str] = task.child.take(0, PATIENCE_S)
    except Failed as failure:
        problem = str(failure)
        if problem.startswith("ConfigError: "):  # for example of a layer of a plugin
            problem = problem.removeprefix("ConfigError: ")
            raise ConfigError(f"{task.now.name} cannot compute it: {problem}") from failure
        raise WorkerFailed(f"{task.now.name} cannot compute it: {failure}") from failure
    return task.now, names


def compute_side(
    lane: Lane,
    side: ParitySide,
    plan: ModelPlan,
    subject: Path,
    replacements: Path | None,
    target: Path,
) -> list[str]:
    """Compute a side's results; returns their names in the order of the computation.

    Args:
        lane: of the child.
        side: that computes.
        plan: of the computation.
        subject: file with the subject's arrays.
        replacements: file with inputs that replace some of them, or None.
        target: file to write.
    """
    arrays = dict(tensors.read(subject))
    if replacements is not None:
        arrays |= tensors.read(replacements)
    inputs = {k.removeprefix(INPUT): v for k, v in arrays.items() if k.startswith(INPUT)}
    fixed = {k.removeprefix(FIXED): v for k, v in arrays.items() if k.startswith(FIXED)}
    stage = target.with_suffix(STAGE)
    computed: dict[str, Array] = {}
    kind = ""
    for name, x in side_results(side, plan, inputs, fixed, stage.write_text):
        if name.partition("/")[0] != kind:
            kind = name.partition("/")[0]
            stage.write_text(kind)
        computed[name] = np.ascontiguousarray(x).reshape(np.shape(x))
    save_file(computed, target)
    return list(computed)


def side_results(
    side: ParitySide,
    plan: ModelPlan,
    inputs: Mapping[str, Array],
    fixed: Mapping[str, Array],
    tell: Callable[[str], object] = lambda stage: None,
) -> Iterator[tuple[str, Array]]:
    """Compute a side's results in this process; arguments as of `compute_side`.

    `tell` is called with what the reference computes next.
    """
    if side.backend == NUMPY:
        yield from _reference(plan, inputs, fixed, tell)
        return
    if side.backend in PEERS:
        from mlxhog.parity import peers_torch

        yield from peers_torch.results(side.backend, plan, inputs, fixed)
        return
    engine = engine_of(side)
    yield from operators.results(engine, plan)
    yield from operators.precision_results(engine)
    steps = partial(optimizers.ours, plugins=plan.plugins)
    yield from results.model(engine, plan, inputs, fixed, steps)


def _reference(
    plan: ModelPlan,
    inputs: Mapping[str, Array],
    fixed: Mapping[str, Array],
    tell: Callable[[str], object],
) -> Iterator[tuple[str, Array]]:
    """Yield NumPy's results and their conditions."""
    yield from operators.reference(plan)
    yield from precision.exact()
    tell("results in float64")
    right = dict(exact(plan, inputs, fixed, tokenwise=True))
    yield from right.items()
    turn = count(1)

    def again(moved: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        tell(f"rounded inputs, {next(turn)} of {len(tolerances.AMOUNTS)}")
        return exact(plan, moved, fixed)

    yield from tolerances.measure(right, inputs, again)
    if any(name.startswith("grad/") for name in right):

        def gradients(engine: NumPyEngine, params: Mapping[str, Array]) -> dict[str, Array]:
            engine.load(plan.cfg, params)
            grads = engine.differentiate(fixed["tokens"], fixed["targets"])[1]
            return {name: np.asarray(grad) for name, grad in grads.items()}

        def exact_gradients(params: Mapping[str, Array]) -> dict[str, Array]:
            if params is not inputs:
                return gradients(NumPyEngine(), params)
            named = {name.partition("/")[::2]: grad for name, grad in right.items()}
            return {name: grad for (kind, name), grad in named.items() if kind == "grad"}

        tell("noise of gradients")
        rounding = partial(gradients, NumPyEngine(rounded=True))
        yield from tolerances.measure_noise(inputs, exact_gradients, rounding)


def exact(
    plan: ModelPlan,
    inputs: Mapping[str, Array],
    fixed: Mapping[str, Array],
    *,
    tokenwise: bool = False,
) -> Iterator[tuple[str, Array]]:
    """Compute a model's results in float64; arguments as of `compute_side`."""
    steps = optimizers.reference
    return results.model(NumPyEngine(), plan, inputs, fixed, steps, tokenwise=tokenwise)


def engine_of(side: ParitySide) -> FrameworkEngine:
    """Import the side's framework and start it."""
    return FrameworkEngine(side.backend, side.kernels, THREADS)
