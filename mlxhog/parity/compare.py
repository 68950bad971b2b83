"""Two sides' arrays of one name, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mlxhog.parity import conditioning, operators, tolerances
from mlxhog.parity.optimizers import AMPLIFICATION
from mlxhog.parity.subject import Array, Results, first, parameter_after

FORMS = ("parallel", "chunkwise", "recurrent", "sequence", "stepwise")
_PIECE = 1 << 22  # elements compared at a time, so that float64 copies stay small


@dataclass(frozen=True)
class Row:
    """One tensor of two sides.

    Attributes:
        a: the side that is judged.
        b: the side it is judged by.
        what: name of the tensor, of both; `against` is that of b where it is another.
        kind: what it is a case of, the word before its own name.
        tolerance: what `max_abs` may be.
        reason: why it may, or what keeps the two from being compared.
        max_abs: largest difference; None where one of the two is not finite or has another shape.
        max_rel: the same relative to the largest entry of b's tensor, or for a parameter after some
            steps to how far it has moved; None if that is 0.
        ok: whether `max_abs` is within the tolerance.
        where: index of the largest difference, or of what is not finite.
        got: a's value there.
        wanted: b's value there.
        unit: what `max_abs` and `tolerance` are counted in; "" for plain numbers.
    """

    a: str
    b: str
    what: str
    against: str
    kind: str
    tolerance: float
    reason: str
    max_abs: float | None = None
    max_rel: float | None = None
    ok: bool = False
    where: tuple[int, ...] = ()
    got: float | None = None
    wanted: float | None = None
    unit: str = ""

    @property
    def pressure(self) -> float:
        """Difference as a share of what is allowed: how near this row is to failing."""
        if self.max_abs is None:
            return float("inf")
        if self.tolerance == 0.0:
            return 0.0 if self.max_abs == 0.0 else float("inf")
        return self.max_abs / self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name; the reasons of tolerances are the same for all of a kind."""
        fields = asdict(self)
        if self.max_abs is not None:
            del fields["reason"]
        return fields


def kind_of(name: str) -> str:
    """Return the kind of a result by its name in `subject.py`, a key of `tolerances.FLOAT32`."""
    parts = name.split("/")
    if parts[0] in FORMS:
        parts = parts[1:]
    return parts[0] if parts[0] in tolerances.FLOAT32 else parts[-1]


def rows(
    a: str,
    got: Results,
    b: str,
    wanted: Results,
    *,
    precision: str,
    start: Results,
    conditions: Mapping[str, float],
    pairs: Sequence[tuple[str, str]],
    steps: int = 0,
    inexact: int = 1,
) -> Iterator[Row]:
    """Compare arrays of two sides.

    Args:
        a: the side that is judged.
        got: its arrays.
        b: the side it is judged by.
        wanted: its arrays.
        precision: which tolerances hold, a key of `tolerances.TABLES`.
        start: parameters before the steps of an optimizer. What is after them is measured by how
            far the parameter has moved.
        conditions: of results, from `conditioning.split`.
        pairs: names in `got` and in `wanted`.
        steps: of an optimizer, before what is after them.
        inexact: how many of the two arrays are off by what is allowed, 1 or 2.
    """
    largest = {other: _size(other, wanted[other], start) for _, other in pairs}
    of_kind: dict[str, float] = {}
    for other, size in largest.items():
        of_kind[kind_of(other)] = max(of_kind.get(kind_of(other), 0.0), size)
    for name, other in pairs:
        kind, after = kind_of(other), parameter_after(other) is not None
        sizes = tolerances.Sizes(
            largest=largest[other],
            of_all=of_kind[kind],
            value=_largest(wanted[other]) if after else largest[other],
            steps=steps if after else 0,
            gradient=_amplified(other, steps, of_kind.get("grad", 0.0)),
        )
        condition = conditioning.of(other, conditions)
        tolerance, reason = tolerances.allowed(kind, precision, sizes, condition)
        row = Row(
            a=a,
            b=b,
            what=name,
            against=other,
            kind=kind,
            tolerance=inexact * tolerance,
            reason=reason,
        )
        yield _measured(row, got[name], wanted[other], largest[other])


def _amplified(name: str, steps: int, largest_gradient: float) -> float:
    """What an optimizer makes of an error of one largest gradient at every step; else 0."""
    if parameter_after(name) is None:
        return 0.0
    return AMPLIFICATION[name.split("/")[1]] * steps * largest_gradient


def operator_rows(
    a: str, got: Results, b: str, exact: Results, *, gpu: bool = False
) -> Iterator[Row]:
    """Compare operators alone with float64: each entry, and the root mean square of all."""
    for name, wanted in exact.items():
        kind, _, operator = name.partition("/")
        if kind != "operator" or name not in got:
            continue
        y = got[name]
        ulps, most_rms = operators.OPERATORS[operator].allowed(gpu=gpu)
        row = Row(a, b, name, name, kind, ulps, tolerances.of(kind, "float32").reason)
        row = replace(row, unit=LAST_PLACES)
        if y.shape != wanted.shape or not np.isfinite(y).all():
            yield _measured(row, y, wanted, 0.0)
            continue
        off = operators.apart(y, wanted)
        at, rms = int(off.argmax()), float(np.sqrt(np.mean(np.square(off))))
        seen = replace(row, where=(at,), got=float(y[at]), wanted=float(wanted[at]))
        yield _within(seen, float(off[at]))
        yield _within(replace(row, what=f"{name}/rms", tolerance=most_rms), rms)


def step_rows(a: str, got: Results) -> Iterator[Row]:
    """Compare what a side's optimizers made of its own gradients with what their formulas do."""
    for name, value in got.items():
        if not name.startswith("step/"):
            continue
        off, at, mine, formula = (float(x) for x in value)
        after = got[name.replace("step/", "after/", 1)]
        row = Row(
            a,
            "formula",
            name,
            name,
            "step",
            tolerances.STEP,
            tolerances.of("step", "float32").reason,
        )
        seen = replace(row, got=mine, wanted=formula, unit=ROUNDINGS)
        if not np.isfinite(off):
            yield replace(seen, reason="not finite")
            continue
        where = tuple(int(i) for i in np.unravel_index(int(at), after.shape))
        yield _within(replace(seen, where=where), off)


LAST_PLACES = "units in the last place"
ROUNDINGS = "roundings of the parameter per step"


def _within(row: Row, off: float) -> Row:
    return replace(row, max_abs=off, ok=off <= row.tolerance)


def _measured(row: Row, x: Array, y: Array, largest: float) -> Row:
    if x.shape != y.shape:
        return replace(row, reason=f"the shapes are {x.shape} and {y.shape}")
    if not x.size:
        return replace(row, max_abs=0.0, ok=True, reason="both are empty")
    worst, at = _worst(x, y)
    seen = replace(row, where=at, got=float(x[at]), wanted=float(y[at]))
    if not np.isfinite(worst):
        return replace(seen, reason="not finite")
    relative = worst / largest if largest > 0 else None
    return replace(seen, max_abs=worst, max_rel=relative, ok=worst <= row.tolerance)


def _size(name: str, x: Array, start: Results) -> float:
    """What a difference is relative to: the largest entry, or the longest way moved."""
    parameter = parameter_after(name)
    return _largest(x if parameter is None else x - start[parameter])


def _largest(x: Array) -> float:
    """Largest finite magnitude."""
    flat = x.reshape(-1)
    found = 0.0
    for begin in range(0, flat.size, _PIECE):
        piece = np.abs(flat[begin : begin + _PIECE].astype(np.float64))
        found = max(found, float(piece[np.isfinite(piece)].max(initial=0.0)))
    return found


def _worst(x: Array, y: Array) -> tuple[float, tuple[int, ...]]:
    """Largest difference and its index; infinite at the first entry that is not finite."""
    worst, at = -1.0, 0
    x_flat, y_flat = x.reshape(-1), y.reshape(-1)
    for begin in range(0, x_flat.size, _PIECE):
        a = x_flat[begin : begin + _PIECE].astype(np.float64)
        b = y_flat[begin : begin + _PIECE].astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            worst, at = np.inf, begin + first(~finite)[0]
            break
        difference = np.abs(a - b)
        k = int(difference.argmax())
        if difference[k] > worst:
            worst, at = float(difference[k]), begin + k
    return worst, tuple(int(i) for i in np.unravel_index(at, x.shape))
