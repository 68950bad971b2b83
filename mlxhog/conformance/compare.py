"""Compare the tensors of two sides.

every side                  with the reference, NumPy where it runs
every side, step by step    with itself, over the whole sequence
every side's optimizers     with their formulas, on that side's gradients
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mlxhog.conformance import tolerances
from mlxhog.conformance.optimizers import AMPLIFICATION
from mlxhog.conformance.subject import (
    NUMPY,
    RULES,
    Array,
    ParitySide,
    ParitySubject,
    Results,
    parameter_after,
)

OWN_CPU = frozenset({NUMPY, "torch:cpu", "mlx:cpu"})
"""Backends for which the noise of a gradient has been calibrated."""
STEPWISE = "stepwise/"
STEP = "step/"  # prefix of results that are compared with a formula
ROUNDINGS = "roundings of the parameter per step"


@dataclass(frozen=True)
class ComparedTensor:
    """A tensor of two sides, its deviation and tolerance."""

    a: str  # the side that is compared
    b: str  # the side that it is compared with
    what: str  # name of a's tensor
    against: str  # name of b's tensor
    kind: str  # of the tensor, the word before its own name
    tolerance: float  # largest allowed `max_abs`
    reason: str  # of the tolerance; or why the two cannot be compared
    max_abs: float | None = None  # largest difference; None if not finite or of another shape
    max_rel: float | None = None  # of b's largest entry; after steps, of its largest movement
    ok: bool = False  # whether `max_abs` is within the tolerance
    where: tuple[int, ...] = ()  # of the largest difference, or of an entry that is not finite
    got: float | None = None  # a's value there
    wanted: float | None = None  # b's value there
    unit: str = ""  # of `max_abs` and `tolerance`; "" for plain numbers

    @property
    def tolerance_ratio(self) -> float:
        """Deviation over tolerance; at most 1 if the tensor is ok."""
        if not self.max_abs:
            return float("inf") if self.max_abs is None else 0.0
        return self.max_abs / self.tolerance if self.tolerance else float("inf")

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, without the reason of the tolerance, which is its kind's."""
        fields = asdict(self)
        if self.max_abs is not None:
            del fields["reason"]
        return fields


def rows(
    subject: ParitySubject,
    sides: Sequence[ParitySide],
    computed: Mapping[str, Results],
    conditions: Mapping[str, float],
) -> Iterator[ComparedTensor]:
    """Yield the comparisons of all results, by side; the first side is the reference."""
    reference = sides[0]
    how: dict[str, Any] = {"start": subject.inputs, "steps": subject.steps}
    expected = computed[reference.name]
    for side in sides[1:]:
        mine = computed[side.name]
        pairs = [(name, name) for name in mine if name in expected and not name.startswith(STEP)]
        yield from tensor_rows(mine, expected, pairs, (side, reference), conditions, **how)
        yield from step_rows(side.name, mine)
    for side in sides:
        mine = computed[side.name]
        whole = [(name, name.removeprefix(STEPWISE)) for name in mine if name.startswith(STEPWISE)]
        pairs = [pair for pair in whole if pair[1] in mine]
        yield from tensor_rows(mine, mine, pairs, (side, side), conditions, start=subject.inputs)


def first_bad(
    rows: Sequence[ComparedTensor], computed: Mapping[str, Results]
) -> ComparedTensor | None:
    """Return the first disagreement in the order of the computation."""
    places = [{name: place for place, name in enumerate(mine)} for mine in computed.values()]

    def place(row: ComparedTensor) -> int:
        return min((names[row.what] for names in places if row.what in names), default=0)

    return min((row for row in rows if not row.ok), key=place, default=None)


def kind_of(name: str) -> str:
    """Return the kind of a result, a key of `tolerances.FLOAT32`."""
    parts = name.split("/")
    return next((part for part in parts if part in tolerances.FLOAT32), parts[-1])


def tensor_rows(
    mine: Results,
    theirs: Results,
    pairs: Sequence[tuple[str, str]],
    sides: tuple[ParitySide, ParitySide],
    conditions: Mapping[str, float],
    *,
    start: Results,
    steps: int = 0,
) -> Iterator[ComparedTensor]:
    """Compare arrays of two sides, by pairs of names.

    The conditions are from `tolerances.measure`. `start` has the parameters before the steps of
    each optimizer, after which their movement is compared; a side and itself have 0 steps.
    """
    a, b = sides
    inexact = 1 if a.float64 or b.float64 else 2
    is_noisy = a is not b and {a.backend, b.backend} <= OWN_CPU
    largest = {other: _size(other, theirs[other], start) for _, other in pairs}
    of_kind: dict[str, float] = {}
    for other, size in largest.items():
        of_kind[kind_of(other)] = max(of_kind.get(kind_of(other), 0.0), size)
    for name, other in pairs:
        kind, size, expected = kind_of(other), largest[other], theirs[other]
        if a.float64 and b.float64:
            allowed = tolerances.FLOAT64_GRAD if kind == "grad" else tolerances.FLOAT64
            most = allowed.of_largest * size + allowed.atol
        else:
            condition = tolerances.condition_of(other, conditions)
            noise = conditions.get(tolerances.NOISE_PREFIX + other) if is_noisy else None
            allowed, most = tolerances.allowed(kind, condition, noise, size, of_kind[kind])
            places, value = tolerances.LAST_PLACES, size
            most += tolerances.mixed_noise(other, conditions)
            if (parameter := parameter_after(other)) is not None:
                places, value = places + steps, _largest(expected)
                amplified = AMPLIFICATION[other.split("/")[1]] * steps
                if condition is not None:
                    grown = amplified * of_kind.get("grad", 0.0)
                    most += tolerances.MEASURED["grad"].of_all * grown
                most += amplified * tolerances.mixed_noise(f"grad/{parameter}", conditions)
            most += places * float(np.spacing(np.float32(value)))
        row = ComparedTensor(a.name, b.name, name, other, kind, inexact * most, allowed.reason)
        yield measured(row, mine[name], expected, size)


def step_rows(a: str, results: Results) -> Iterator[ComparedTensor]:
    """Compare a side's steps with their formulas on its own gradients."""
    for name, value in results.items():
        if not name.startswith(STEP):
            continue
        off, at, mine, formula = (float(x) for x in value)
        _, rule, parameter = name.split("/", 2)
        most = tolerances.STEP if rule in RULES else tolerances.PLUGIN_STEP
        reason = tolerances.FLOAT32["step"].reason
        row = ComparedTensor(a, "formula", name, name, "step", most, reason)
        located = replace(row, got=mine, wanted=formula, unit=ROUNDINGS)
        if not np.isfinite(off):
            yield replace(located, reason="not finite")
            continue
        where = _index(int(at), results[f"grad/{parameter}"].shape)
        yield replace(located, where=where, max_abs=off, ok=off <= most)


def measured(row: ComparedTensor, x: Array, y: Array, largest: float) -> ComparedTensor:
    """Return a row with the deviation of x from y, relative to `largest` too."""
    if x.shape != y.shape:
        return replace(row, reason=f"the shapes are {x.shape} and {y.shape}")
    if not x.size:
        return replace(row, max_abs=0.0, ok=True, reason="both are empty")
    with np.errstate(invalid="ignore"):
        deviation = np.abs(x.astype(np.float64) - y)
    deviation = np.where(np.isfinite(x) & np.isfinite(y), deviation, np.inf)
    at = _index(int(deviation.argmax()), x.shape)
    worst = float(deviation[at])
    located = replace(row, where=at, got=float(x[at]), wanted=float(y[at]))
    if not np.isfinite(worst):
        return replace(located, reason="not finite")
    relative = worst / largest if largest > 0 else None
    return replace(located, max_abs=worst, max_rel=relative, ok=worst <= row.tolerance)


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def _size(name: str, x: Array, start: Results) -> float:
    """Return the largest entry of a result, or the largest movement of a parameter."""
    parameter = parameter_after(name)
    return _largest(x if parameter is None else x - start[parameter])


def _largest(x: Array) -> float:
    return float(np.abs(np.where(np.isfinite(x), x, 0.0)).max(initial=0.0))
