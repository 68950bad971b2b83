"""Compute a subject by every side, each backend in a child process of its own; compare all numbers.

`compare_sides` and `computed_results` run in the parent, `compute_side` in the child. Arrays travel
by files in a folder that is removed when the block ends, also by an error.
"""

from __future__ import annotations

import tempfile
import time
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
from mlxhog.errors import ConfigError, EnvironmentLacks, WorkerFailed
from mlxhog.parity import compare, optimizers, results, tolerances
from mlxhog.parity.compare import ComparedTensor
from mlxhog.parity.engines import FrameworkEngine, NumPyEngine
from mlxhog.parity.results import NamedArrays
from mlxhog.parity.subject import (
    NUMPY,
    Array,
    ModelPlan,
    ParitySide,
    ParitySubject,
    Results,
    perturbed,
)
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
        arrays, changed = folder / "arrays.safetensors", folder / "perturbed.safetensors"
        _save(arrays, {INPUT: subject.inputs, FIXED: subject.fixed})
        if perturbation is not None:
            _save(changed, {INPUT: {perturbation.name: perturbation.value}})
        running: dict[Any, tuple[Child, list[ParitySide]]] = {}
        orders: dict[str, list[str]] = {}

        def begin(child: Child, waiting: list[ParitySide]) -> None:
            side = waiting[0]
            tell(side.name, "")
            files = [arrays]
            if perturbation is not None and perturbation.side == side.name:
                files.append(changed)
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


# -- the comparison --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParityReport:
    """The result of a comparison.

    Attributes:
        subject: of the computation.
        sides: that computed it, the reference first.
        rows: all compared tensors.
        first_bad: the first disagreement in the computation; None if all agree.
        perturbation: an input that one side got another value of.
        seconds: duration.
    """

    subject: ParitySubject
    sides: Sequence[ParitySide]
    rows: Sequence[ComparedTensor]
    first_bad: ComparedTensor | None
    perturbation: Perturbation | None
    seconds: float

    @property
    def missed(self) -> bool:
        """Whether a parameter was perturbed and no comparison failed."""
        return self.perturbation is not None and self.first_bad is None

    @property
    def ok(self) -> bool:
        """Whether everything agrees and no perturbation was missed."""
        return self.first_bad is None and not self.missed

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints, without notes."""
        perturbation = None
        if self.perturbation is not None:
            perturbation = {"name": self.perturbation.name, "side": self.perturbation.side}
        kinds = sorted({row.kind for row in self.rows})
        return {
            "ok": self.ok,
            "subject": self.subject.title,
            "backends": [side.name for side in self.sides],
            "perturbed": perturbation,
            "first_bad": None if self.first_bad is None else self.first_bad.to_json(),
            "seconds": round(self.seconds, 3),
            "reasons": {kind: tolerances.FLOAT32[kind].reason for kind in kinds},
            "rows": [row.to_json() for row in self.rows],
        }


def compare_sides(
    subject: ParitySubject,
    sides: Sequence[ParitySide],
    tell: TellStep,
    *,
    perturb: str | None = None,
    seed: int = 0,
    save: Path | None = None,
) -> ParityReport:
    """Compute a subject by every side and compare every number.

    Args:
        subject: checked.
        sides: that compute it, the reference first.
        tell: called with (side, "") when a side begins.
        perturb: an input whose value is changed for the first side after the reference.
        seed: of that value.
        save: .npz file for all arrays, as SIDE/NAME.

    Raises:
        ConfigError: there is nothing to compare, or no such input to perturb.
        WorkerFailed: a side could not compute it.
        EnvironmentLacks: `save` cannot be written.
    """
    if len(sides) < 2:
        raise ConfigError(f"{sides[0].name} is the only side; give --backends two names")
    begin = time.perf_counter()
    perturbation = None
    if perturb is not None:
        value = perturbed(subject.inputs, perturb, seed)
        perturbation = Perturbation(sides[1].name, perturb, value)
    with computed_results(subject, sides, perturbation, tell) as by_side:
        rows, computed = compare_all(subject, sides, by_side)
        bad = compare.first_bad(rows, computed)
        if save is not None:
            arrays: dict[str, Any] = {
                f"{side}/{name}": x for side, mine in computed.items() for name, x in mine.items()
            }
            try:
                with save.open("wb") as file:
                    np.savez(file, **arrays)
            except OSError as error:
                save.unlink(missing_ok=True)
                raise EnvironmentLacks(
                    f"--save {save}: {error.strerror or error}; choose another place"
                ) from error
    return ParityReport(subject, sides, rows, bad, perturbation, time.perf_counter() - begin)


def compare_all(
    subject: ParitySubject, sides: Sequence[ParitySide], by_side: Mapping[str, Results]
) -> tuple[list[ComparedTensor], dict[str, Results]]:
    """Compare all that can be compared.

    Args:
        subject: of the computation.
        sides: that computed it, the reference first.
        by_side: results of every side by its name, as `computed_results` yields them.

    Returns:
        The compared tensors, and the results without the conditions among them.
    """
    computed: dict[str, Results] = {}
    conditions: dict[str, float] = {}
    for name, mine in by_side.items():
        computed[name], known = tolerances.split(mine)
        conditions |= known
    return list(compare.rows(subject, sides, computed, conditions)), computed
