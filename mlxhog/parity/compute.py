"""Compute a subject by every side, each backend in a child process of its own; compare all numbers.

`compare_sides` and `computed_results` run in the parent, `compute_side` in the child. Arrays travel
by files in a folder that is removed when the block ends, also by an error.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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
from mlxhog.parity import compare, engines, optimizers, tolerances
from mlxhog.parity.compare import ComparedTensor
from mlxhog.parity.engines import FrameworkEngine, NamedArrays, NumPyEngine
from mlxhog.parity.subject import (
    NUMPY,
    Array,
    ParitySide,
    ParitySubject,
    Results,
    perturbed,
)
from mlxhog.report.views import TellStep

PATIENCE_S = 60.0  # for the rest of a message that has begun to arrive
INPUT, FIXED = "input/", "fixed/"


@contextmanager
def computed_results(
    subject: ParitySubject,
    sides: Sequence[ParitySide],
    perturbed: Mapping[str, Mapping[str, Array]],
    tell: TellStep,
) -> Iterator[dict[str, Results]]:
    """Compute the results of every side; their files exist until the block ends.

    Args:
        subject: of the computation.
        sides: that compute it; those of one backend follow each other.
        perturbed: other values of inputs, by side.
        tell: called with (side, "") when a side begins.

    Raises:
        ConfigError: the model cannot be computed, for example a layer of a plugin.
        WorkerFailed: a side could not compute it, or its process died; has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="mlxhog-parity-") as name, ExitStack() as stack:
        folder = Path(name)
        arrays, changed = folder / "arrays.safetensors", folder / "perturbed.safetensors"
        _save(arrays, {INPUT: subject.inputs, FIXED: subject.fixed})
        for values in perturbed.values():
            _save(changed, {INPUT: values})
        running: dict[Any, tuple[Child, list[ParitySide]]] = {}
        orders: dict[str, list[str]] = {}

        def begin(child: Child, waiting: list[ParitySide]) -> None:
            side = waiting[0]
            tell(side.name, "")
            files = [arrays, *[changed] * (side.name in perturbed)]
            child.start(0, compute_side, side, subject.settings(), files, _file(folder, side))

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
    lane: Lane, side: ParitySide, subject: ParitySubject, files: Sequence[Path], target: Path
) -> list[str]:
    """Compute a side's results; returns their names in the order of the computation.

    Args:
        lane: of the child.
        side: that computes.
        subject: of the computation, without arrays.
        files: the subject's arrays; those of a later file replace earlier ones.
        target: file to write.
    """
    arrays: dict[str, Array] = {}
    for file in files:
        arrays |= tensors.read(file)
    inputs = {k.removeprefix(INPUT): v for k, v in arrays.items() if k.startswith(INPUT)}
    fixed = {k.removeprefix(FIXED): v for k, v in arrays.items() if k.startswith(FIXED)}
    computed = dict(side_results(side, replace(subject, inputs=inputs, fixed=fixed)))
    _save(target, {"": computed})
    return list(computed)


def side_results(side: ParitySide, subject: ParitySubject) -> NamedArrays:
    """Compute a side's results in this process, those of NumPy with their conditions."""
    if side.backend == NUMPY:
        yield from precision.exact()
        yield from _reference(subject)
        return
    engine = engine_of(side)
    yield from precision_results(engine)
    steps = partial(optimizers.ours, plugins=subject.plugins)
    yield from engines.results(engine, subject, subject.inputs, steps)


def precision_results(engine: FrameworkEngine) -> NamedArrays:
    """Compute the probes of `mlxhog.backends.precision` by an engine."""
    for name, probe in precision.PROBES.items():
        yield name, engine.apply(probe.call, probe.inputs())


def _reference(subject: ParitySubject) -> NamedArrays:
    """Compute the results in float64, and how far they move when the inputs are rounded."""

    def exact(moved: Mapping[str, Array], tokenwise: bool = False) -> NamedArrays:
        steps = optimizers.reference
        return engines.results(NumPyEngine(), subject, moved, steps, tokenwise=tokenwise)

    def gradients(moved: Mapping[str, Array], *, rounded: bool) -> Mapping[str, Array]:
        engine = NumPyEngine(rounded=rounded)
        engine.load(subject.cfg, moved)
        return engine.differentiate(subject.fixed["tokens"], subject.fixed["targets"])[1]

    inputs = subject.inputs
    right = dict(exact(inputs, tokenwise=True))
    yield from right.items()
    yield from tolerances.measure(right, inputs, exact)
    if "targets" in subject.fixed:
        near = partial(gradients, rounded=True)
        yield from tolerances.measure_noise(inputs, partial(gradients, rounded=False), near)


def engine_of(side: ParitySide) -> FrameworkEngine:
    """Import the side's framework and start it."""
    return FrameworkEngine(side.backend, side.kernels)


# -- the comparison --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParityReport:
    """The result of a comparison.

    Attributes:
        subject: of the computation.
        sides: that computed it, the reference first.
        rows: all compared tensors.
        first_bad: the first disagreement in the computation; None if all agree.
        perturbed: name of an input that one side got another value of, and that side.
        seconds: duration.
    """

    subject: ParitySubject
    sides: Sequence[ParitySide]
    rows: Sequence[ComparedTensor]
    first_bad: ComparedTensor | None
    perturbed: tuple[str, str] | None
    seconds: float

    @property
    def missed(self) -> bool:
        """Whether a parameter was perturbed and no comparison failed."""
        return self.perturbed is not None and self.first_bad is None

    @property
    def ok(self) -> bool:
        """Whether everything agrees and no perturbation was missed."""
        return self.first_bad is None and not self.missed

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints, without notes."""
        names = self.perturbed and dict(zip(("name", "side"), self.perturbed, strict=True))
        kinds = sorted({row.kind for row in self.rows})
        return {
            "ok": self.ok,
            "subject": self.subject.title,
            "backends": [side.name for side in self.sides],
            "perturbed": names,
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
    named = None if perturb is None else (perturb, sides[1].name)
    other: dict[str, dict[str, Array]] = {}
    if perturb is not None:
        other[sides[1].name] = {perturb: perturbed(subject.inputs, perturb, seed)}
    with computed_results(subject, sides, other, tell) as by_side:
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
    return ParityReport(subject, sides, rows, bad, named, time.perf_counter() - begin)


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
