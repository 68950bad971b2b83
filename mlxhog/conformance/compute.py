"""Compute a subject by every side, each backend in a child process; compare all numbers."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from multiprocessing import connection
from typing import Any

import numpy as np

from mlxhog.arena.child import Child, Failed, Lane
from mlxhog.backends import probes
from mlxhog.conformance import compare, engines, optimizers, tolerances
from mlxhog.conformance.compare import ComparedTensor
from mlxhog.conformance.engines import FrameworkEngine, NamedArrays, NumPyEngine
from mlxhog.conformance.subject import NUMPY, ParitySide, ParitySubject, Results, perturbed
from mlxhog.display.views import TellStep
from mlxhog.errors import ConfigError, WorkerFailed

PATIENCE_S = 60.0  # for the rest of a message that has begun to arrive

Computed = tuple[Results, Mapping[str, float]]
"""Results of a side, and conditions of the reference (`tolerances.py`)."""


def computed_results(
    subject: ParitySubject,
    sides: Sequence[ParitySide],
    changed: Mapping[str, Results],
    tell: TellStep,
) -> dict[str, Computed]:
    """Compute the results of every side; sides of one backend follow each other in its process.

    `changed` has other inputs, by side. Errors as in `compare_sides`.
    """
    results: dict[str, Computed] = {}
    with ExitStack() as stack:
        groups = {key: [*group] for key, group in groupby(sides, lambda side: side.backend)}
        children = {backend: stack.enter_context(Child()) for backend in groups}
        for backend, child in children.items():
            for side in groups[backend]:
                tell(side.name, "")
            child.start(compute_sides, groups[backend], subject, changed)
        for backend, child in children.items():
            connection.wait([child.pipe])
            try:
                results |= child.await_result(PATIENCE_S)
            except Failed as failure:
                problem = str(failure).removeprefix("ConfigError: ")  # as of a plugin's layer
                kind = WorkerFailed if problem == str(failure) else ConfigError
                raise kind(f"{backend} cannot compute it: {problem}") from failure
    return results


def compute_sides(
    lane: Lane, sides: Sequence[ParitySide], subject: ParitySubject, changed: Mapping[str, Results]
) -> dict[str, Computed]:
    """In a child: compute the results of some sides."""
    results: dict[str, Computed] = {}
    for side in sides:
        inputs = {**subject.inputs, **changed.get(side.name, {})}
        results[side.name] = side_results(side, replace(subject, inputs=inputs))
    return results


def side_results(side: ParitySide, subject: ParitySubject) -> Computed:
    """Compute a side's results in this process."""
    if side.backend == NUMPY:
        return _reference(subject)
    engine = FrameworkEngine(side.backend, side.kernels, dtype=subject.dtype)
    steps = partial(optimizers.native_steps, plugins=subject.plugins)
    return dict([*engine.probes(), *engines.results(engine, subject, subject.inputs, steps)]), {}


def _reference(subject: ParitySubject) -> Computed:
    """Compute the results in float64, and how far they move when the inputs are rounded."""

    def compute(moved: Results, tokenwise: bool = False) -> NamedArrays:
        steps = optimizers.float64_steps
        return engines.results(NumPyEngine(), subject, moved, steps, tokenwise=tokenwise)

    def rounding(moved: Results, **how: bool) -> Results:
        engine = NumPyEngine(**how)
        engine.load(subject.cfg, moved)
        loss, grads = engine.differentiate(subject.fixed["tokens"], subject.fixed["targets"])
        return {"loss": np.array(loss)} | {f"grad/{name}": grad for name, grad in grads.items()}

    exact = dict(compute(subject.inputs, tokenwise=True))
    noise = dict[str, Callable[[Results], Results]]()
    if "targets" in subject.fixed:
        noise[tolerances.NOISE_PREFIX] = partial(rounding, rounded=True)
        if subject.dtype == "bfloat16":
            noise[tolerances.BF16_PREFIX] = partial(rounding, bf16=True)
    conditions = tolerances.measure(exact, subject.inputs, compute, noise)
    return dict(probes.exact()) | exact, conditions


@dataclass(frozen=True)
class ParityReport:
    """The result of a comparison."""

    subject: ParitySubject
    sides: Sequence[ParitySide]  # the reference first
    rows: Sequence[ComparedTensor]
    first_bad: ComparedTensor | None  # the first disagreement in the computation; None if all agree
    perturbed: tuple[str, str] | None  # an input, and the side that got another value of it
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What was compared."""
        return self.subject.title

    @property
    def names(self) -> list[str]:
        """The sides, the reference first."""
        return [side.name for side in self.sides]

    @property
    def missed(self) -> bool:
        """Whether a parameter was perturbed and no comparison failed."""
        return self.perturbed is not None and self.first_bad is None

    @property
    def ok(self) -> bool:
        """Whether everything agrees and no perturbation was missed."""
        return self.first_bad is None and not self.missed

    def to_json(self) -> dict[str, Any]:
        """Return what `mlxhog parity --json` prints."""
        names = self.perturbed and dict(zip(("name", "side"), self.perturbed, strict=True))
        kinds = sorted({row.kind for row in self.rows})
        return {
            "ok": self.ok,
            "subject": self.title,
            "backends": self.names,
            "perturbed": names,
            "first_bad": None if self.first_bad is None else self.first_bad.to_json(),
            "seconds": round(self.seconds, 3),
            "reasons": {kind: tolerances.FLOAT32[kind].reason for kind in kinds},
            "rows": [row.to_json() for row in self.rows],
            "notes": [*self.notes],
        }


def compare_sides(
    subject: ParitySubject,
    sides: Sequence[ParitySide],
    tell: TellStep,
    *,
    perturb: str | None = None,
    seed: int = 0,
) -> ParityReport:
    """Compute a subject by every side, the reference first, and compare every number.

    `tell` is called with (side, "") when its backend begins. The value of an input to `perturb` is
    changed for the first side after the reference, by the seed.

    Raises:
        ConfigError: there is nothing to compare, no such input to perturb, or a model that cannot
            be computed, for example a layer of a plugin.
        WorkerFailed: a backend could not compute it.
    """
    if len(sides) < 2:
        raise ConfigError(f"{sides[0].name} is the only side; give --backends two names")
    begin, named, changed = time.perf_counter(), None, dict[str, Results]()
    if perturb is not None:
        named = perturb, sides[1].name
        changed[sides[1].name] = {perturb: perturbed(subject.inputs, perturb, seed)}
    rows, computed = compare_all(subject, sides, computed_results(subject, sides, changed, tell))
    bad = compare.first_bad(rows, computed)
    return ParityReport(subject, sides, rows, bad, named, time.perf_counter() - begin)


def compare_all(
    subject: ParitySubject, sides: Sequence[ParitySide], by_side: Mapping[str, Computed]
) -> tuple[list[ComparedTensor], dict[str, Results]]:
    """Compare all that can be compared; return the tensors, and the results without conditions."""
    computed = {name: results for name, (results, _) in by_side.items()}
    conditions = {name: x for _, own in by_side.values() for name, x in own.items()}
    return list(compare.rows(subject, sides, computed, conditions)), computed
