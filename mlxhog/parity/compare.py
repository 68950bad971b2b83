"""Which sides are compared, and the comparison of two arrays.

every side                  with the reference, NumPy where it runs
an MLX side                 with the PyTorch side of the same kernels
every side                  with PyTorch's plain kernels, in results that the reference lacks
every side, step by step    with itself, over the whole sequence
every side's optimizers     with their formulas, on that side's gradients
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from mlxhog.parity import tolerances
from mlxhog.parity.optimizers import AMPLIFICATION
from mlxhog.parity.subject import (
    NUMPY,
    RULES,
    Array,
    ParitySide,
    ParitySubject,
    Results,
    first,
    parameter_after,
)

Pairs = Sequence[tuple[str, str]]
"""Names of a result and of the one that it is compared with."""
_PIECE = 1 << 22  # elements compared at a time, so that float64 copies stay small
PLAIN = "torch:cpu+reference"
OWN_CPU = frozenset({NUMPY, "torch:cpu", "mlx:cpu"})
"""Backends for which the noise of a gradient has been calibrated."""
STEPWISE = "stepwise/"
STEP = "step/"
"""Prefix of results that are compared with a formula."""


@dataclass(frozen=True)
class ComparedTensor:
    """One tensor of two sides.

    Attributes:
        a: the side that is compared.
        b: the side that it is compared with.
        what: name of a's tensor.
        against: name of b's tensor.
        kind: of the tensor, the word before its own name.
        tolerance: largest allowed `max_abs`.
        reason: of the tolerance; or why the two cannot be compared.
        max_abs: largest difference; None if one of the two is not finite or has another shape.
        max_rel: the same relative to the largest entry of b's tensor, or, for a parameter after
            some steps, to its largest movement; None if that is 0.
        ok: whether `max_abs` is within the tolerance.
        where: index of the largest difference, or of an entry that is not finite.
        got: a's value there.
        wanted: b's value there.
        unit: of `max_abs` and `tolerance`; "" for plain numbers.
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
        """Difference as a share of the tolerance."""
        if self.max_abs is None:
            return float("inf")
        if self.tolerance == 0.0:
            return 0.0 if self.max_abs == 0.0 else float("inf")
        return self.max_abs / self.tolerance

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
    """Compare all that can be compared.

    Args:
        subject: of the computation.
        sides: that computed it, the reference first.
        computed: results by the name of their side.
        conditions: of the reference, see `tolerances.py`.
    """
    reference, *others = sides
    by_name = {side.name: side for side in others}

    def met(
        side: ParitySide, other: ParitySide, pairs: Pairs, *, noise: bool = False, steps: int = 0
    ) -> Iterator[ComparedTensor]:
        exact = sum(one.float64 for one in (side, other))
        return tensor_rows(
            side.name,
            computed[side.name],
            other.name,
            computed[other.name],
            precision="float64" if exact == 2 else "float32",
            start=subject.inputs,
            conditions=conditions,
            pairs=pairs,
            steps=steps,
            inexact=1 if exact else 2,
            noise=noise,
        )

    def judged(
        side: ParitySide, other: ParitySide, leave_out: Results = MappingProxyType({})
    ) -> Iterator[ComparedTensor]:
        mine, theirs = computed[side.name], computed[other.name]
        names = [
            name
            for name in mine
            if name in theirs and name not in leave_out and not name.startswith(STEP)
        ]
        noise = {side.backend, other.backend} <= OWN_CPU
        pairs = [(name, name) for name in names]
        return met(side, other, pairs, noise=noise, steps=subject.steps)

    for side in others:
        yield from judged(side, reference)
        yield from step_rows(side.name, computed[side.name])
    for side in others:
        counterpart = by_name.get(_counterpart(side.name))
        if counterpart is not None:
            yield from judged(side, counterpart)
        plain = by_name.get(PLAIN)
        if plain is not None and plain not in (side, counterpart):
            yield from judged(side, plain, leave_out=computed[reference.name])
    for side in sides:
        mine = computed[side.name]
        whole = [(name, name.removeprefix(STEPWISE)) for name in mine if name.startswith(STEPWISE)]
        yield from met(side, side, [pair for pair in whole if pair[1] in mine])


def first_bad(
    rows: Sequence[ComparedTensor], computed: Mapping[str, Results]
) -> ComparedTensor | None:
    """Return the first disagreement in the order of the computation."""
    places = [{name: place for place, name in enumerate(mine)} for mine in computed.values()]

    def place(row: ComparedTensor) -> int:
        return min((names[row.what] for names in places if row.what in names), default=0)

    return min((row for row in rows if not row.ok), key=place, default=None)


def _counterpart(name: str) -> str:
    """Return the PyTorch side that an MLX side is compared with; "" for other sides."""
    backend, plus, form = name.partition("+")
    counterpart = {"mlx:cpu": "torch:cpu", "mlx:gpu": "torch:mps"}.get(backend)
    return f"{counterpart}{plus}{form}" if counterpart else ""


def kind_of(name: str) -> str:
    """Return the kind of a result, a key of `tolerances.FLOAT32`."""
    parts = name.split("/")
    return next((part for part in parts if part in tolerances.FLOAT32), parts[-1])


def tensor_rows(
    a: str,
    results: Results,
    b: str,
    expected: Results,
    *,
    precision: str,
    start: Results,
    conditions: Mapping[str, float],
    pairs: Pairs,
    steps: int = 0,
    inexact: int = 1,
    noise: bool = False,
) -> Iterator[ComparedTensor]:
    """Compare arrays of two sides.

    Args:
        a: the side that is compared.
        results: its arrays.
        b: the side that it is compared with.
        expected: its arrays.
        precision: a key of `tolerances.TABLES`.
        start: parameters before the steps of an optimizer; parameters after them are measured by
            their movement.
        conditions: of results, from `tolerances.split`.
        pairs: names in `results` and in `expected`.
        steps: of each optimizer.
        inexact: how many of the two arrays may be off by the tolerance, 1 or 2.
        noise: whether the noise of gradients applies to both sides, see `tolerances.py`.
    """
    largest = {other: _size(other, expected[other], start) for _, other in pairs}
    of_kind: dict[str, float] = {}
    for other, size in largest.items():
        of_kind[kind_of(other)] = max(of_kind.get(kind_of(other), 0.0), size)
    for name, other in pairs:
        kind, after = kind_of(other), parameter_after(other) is not None
        tolerance, reason = tolerances.allowed(
            kind,
            precision,
            tolerances.condition_of(other, conditions),
            largest=largest[other],
            of_all=of_kind[kind],
            value=_largest(expected[other]) if after else largest[other],
            steps=steps if after else 0,
            gradient=_amplified(other, steps, of_kind.get("grad", 0.0)),
            noise=conditions.get(tolerances.NOISE_PREFIX + other) if noise else None,
        )
        row = ComparedTensor(a, b, name, other, kind, inexact * tolerance, reason)
        yield _measured(row, results[name], expected[other], largest[other])


def _amplified(name: str, steps: int, largest_gradient: float) -> float:
    """Return the effect on a parameter of an error of the largest gradient at every step, or 0."""
    if parameter_after(name) is None:
        return 0.0
    return AMPLIFICATION[name.split("/")[1]] * steps * largest_gradient


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
        shape = results[f"grad/{parameter}"].shape
        where = tuple(int(i) for i in np.unravel_index(int(at), shape))
        yield replace(located, where=where, max_abs=off, ok=off <= most)


ROUNDINGS = "roundings of the parameter per step"


def _measured(row: ComparedTensor, x: Array, y: Array, largest: float) -> ComparedTensor:
    if x.shape != y.shape:
        return replace(row, reason=f"the shapes are {x.shape} and {y.shape}")
    if not x.size:
        return replace(row, max_abs=0.0, ok=True, reason="both are empty")
    worst, at = _worst(x, y)
    located = replace(row, where=at, got=float(x[at]), wanted=float(y[at]))
    if not np.isfinite(worst):
        return replace(located, reason="not finite")
    relative = worst / largest if largest > 0 else None
    return replace(located, max_abs=worst, max_rel=relative, ok=worst <= row.tolerance)


def _size(name: str, x: Array, start: Results) -> float:
    """Return the largest entry of a result, or the largest movement of a parameter."""
    parameter = parameter_after(name)
    return _largest(x if parameter is None else x - start[parameter])


def _largest(x: Array) -> float:
    """Return the largest finite magnitude."""
    flat = x.reshape(-1)
    largest = 0.0
    for begin in range(0, flat.size, _PIECE):
        piece = np.abs(flat[begin : begin + _PIECE].astype(np.float64))
        largest = max(largest, float(piece[np.isfinite(piece)].max(initial=0.0)))
    return largest


def _worst(x: Array, y: Array) -> tuple[float, tuple[int, ...]]:
    """Return the largest difference and its index; infinite at an entry that is not finite."""
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
