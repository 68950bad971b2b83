"""Compare what sides computed with float64, tensor by tensor; where they differ, rule between them.

What a side does not return is not checked, and said; a side of which nothing can be checked fails.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.conformance.compare import ComparedTensor
from mlxhog.conformance.sides.foreign import CellSide, SideResults, computed_by_sides
from mlxhog.conformance.vectors.case import STEPS, Case
from mlxhog.conformance.vectors.faults import Judged, guesses
from mlxhog.conformance.vectors.judge import REFERENCE, judged
from mlxhog.display.table import cut
from mlxhog.display.views import TellStep
from mlxhog.errors import MAX_SHOWN, ConfigError, did_you_mean

NOTHING = "nothing was returned that can be compared"
MAX_NAMED = 3  # of the sides that a ruling supports


@dataclass(frozen=True)
class Ruling:
    """A tensor of which sides have different values, and how far each is from float64."""

    supported: Sequence[ComparedTensor]
    departing: Sequence[ComparedTensor]  # one at least

    @property
    def names(self) -> tuple[str, ...]:
        """The sides, those first that float64 supports."""
        return tuple(row.a for row in (*self.supported, *self.departing))

    def __str__(self) -> str:
        """Say it in one sentence."""
        near = ", ".join(f"{row.a} ({_off(row)})" for row in self.supported)
        if len(self.supported) > MAX_NAMED:
            worst = max(row.tolerance_ratio for row in self.supported)
            near = f"{len(self.supported)} others (off by at most {worst:.2g} tolerances)"
        apart = ", ".join(f"{row.a} ({_off(row)})" for row in self.departing)
        return f"{self.departing[0].what}: float64 supports {near or 'none of them'}, not {apart}"

    def to_json(self) -> dict[str, Any]:
        """Return the error over tolerance of each side; None if there is none."""
        off = [
            {row.a: None if row.max_abs is None else row.tolerance_ratio for row in rows}
            for rows in (self.supported, self.departing)
        ]
        return {"what": self.departing[0].what, "supported": off[0], "departing": off[1]}


def _off(row: ComparedTensor) -> str:
    return row.reason if row.max_abs is None else f"off by {row.tolerance_ratio:.2g} tolerances"


@dataclass(frozen=True, kw_only=True)
class SideSummary:
    """How a side agrees with float64."""

    side: CellSide
    rows: Sequence[ComparedTensor]  # in the order of the cases; one at least
    not_checked: Sequence[str]  # what it does not return, and cases that it leaves out
    guesses: Sequence[str] = ()  # what may be wrong, the likeliest first

    @property
    def worst(self) -> ComparedTensor:
        """The tensor with the largest error over tolerance."""
        return max(self.rows, key=lambda row: row.tolerance_ratio)


@dataclass(frozen=True, kw_only=True)
class SidesReport:
    """The comparison of sides with float64."""

    title: str  # of the cases
    dtype: str
    summaries: Sequence[SideSummary]
    seconds: float
    notes: tuple[str, ...] = ()
    missed = False  # no input is perturbed

    @property
    def names(self) -> list[str]:
        """The sides, and the reference."""
        return [*(one.side.name for one in self.summaries), REFERENCE]

    @property
    def rows(self) -> list[ComparedTensor]:
        """Every compared tensor, by side."""
        return [row for one in self.summaries for row in one.rows]

    @property
    def first_bad(self) -> ComparedTensor | None:
        """The first tensor that departs; None if all agree."""
        return next((row for row in self.rows if not row.ok), None)

    @property
    def ok(self) -> bool:
        """Whether every side agrees in all that it returns, which is not nothing."""
        return self.first_bad is None

    @property
    def rulings(self) -> list[Ruling]:
        """The arbiter: where two sides differ, which of them float64 supports."""
        by_tensor: dict[tuple[str, object], list[ComparedTensor]] = {}
        for one in self.summaries:
            for row in one.rows:
                if row.got is not None:  # a tensor of the right shape
                    by_tensor.setdefault((row.what, one.side.claim), []).append(row)
        rulings = [
            Ruling([row for row in rows if row.ok], [row for row in rows if not row.ok])
            for rows in by_tensor.values()
            if len(rows) > 1
        ]
        return [one for one in rulings if one.departing]

    def to_json(self) -> dict[str, Any]:
        """Return what `mlxhog parity --side .. --json` prints."""
        return {
            "ok": self.ok,
            "subject": self.title,
            "backends": self.names,
            "dtype": self.dtype,
            "first_bad": self.first_bad and self.first_bad.to_json(),
            "seconds": round(self.seconds, 3),
            "reasons": {row.what: row.reason for row in self.rows},
            "rows": [row.to_json() for row in self.rows],
            "not_checked": {one.side.name: [*one.not_checked] for one in self.summaries},
            "guesses": {one.side.name: [*one.guesses] for one in self.summaries},
            "arbiter": [one.to_json() for one in self.rulings],
            "notes": [*self.notes],
        }


def compare_cells(
    title: str, sides: Sequence[CellSide], cases: Sequence[Case], dtype: str, limit_s: float,
    tell: TellStep, notes: Sequence[str] = (),
) -> SidesReport:  # fmt: skip
    """Compute cases by every side, and compare them with float64.

    Raises:
        ConfigError: a module or function does not exist, or no case has tolerances in this dtype.
    """
    begin = time.perf_counter()
    if not (cases := [case for case in cases if dtype in case.tolerances]):
        raise ConfigError(f"{title} has no cases in {dtype}; use --dtype float32")
    by_side: dict[str, list[SideResults]] = {side.name: [] for side in sides}
    for one in computed_by_sides(sides, cases, limit_s, tell):
        by_side[one.side.name].append(one)
    return SidesReport(
        title=title,
        dtype=dtype,
        summaries=[_summary(side, by_side[side.name], dtype) for side in sides],
        seconds=time.perf_counter() - begin,
        notes=(*dict.fromkeys(side.note for side in sides if side.note), *notes),
    )


def _summary(side: CellSide, computed: Sequence[SideResults], dtype: str) -> SideSummary:
    """Compare what a side computed; of the same fault of several cases there is one row."""
    rows, counts = dict[tuple[str, str], ComparedTensor](), Counter[tuple[str, str]]()
    entries = list[Judged]()
    for one in computed:
        of_case = [*_rows(one, dtype)]
        for key, row in of_case:
            rows.setdefault(key, row)
            counts[key] += 1
        own = [row for _, row in of_case if row.got is not None]  # of the right shape
        entries.append(Judged(one.case, one.results, own))
    told = [
        replace(row, reason=f"{row.reason} (in {counts[key]} cases)") if counts[key] > 1 else row
        for key, row in rows.items()
    ]
    nothing = _failed(side, "all cases", NOTHING)
    return SideSummary(
        side=side,
        rows=told or [nothing],
        not_checked=[*_not_checked(computed)],
        guesses=[str(guess) for guess in guesses(entries)],
    )


def _rows(one: SideResults, dtype: str) -> Iterator[tuple[tuple[str, str], ComparedTensor]]:
    """Compare every returned tensor by itself, in the order of the checks.

    With a row comes its key, the same for what is wrong in every case.
    """
    case, side = one.case, one.side
    if one.failure:
        yield ("", one.failure), _failed(side, case.name, one.failure)
    checks = {name: check for check, names in case.checks.items() for name in names}
    unknown = [name for name in one.results if name not in checks]
    for name in [*(name for name in checks if name in one.results), *unknown]:
        x, what = one.results[name], f"{case.name}/{name}"
        shape = case.expected[name.removeprefix(STEPS)].shape if name in checks else ()
        if name not in checks:
            text = f"{case.equations} has no such result"
            text += did_you_mean(name, checks) or f"; it has {cut(', '.join(checks), MAX_SHOWN)}"
            yield (name, "unknown"), _failed(side, what, text)
        elif x.shape != shape:
            text = f"the shape is {x.shape}, expected {shape}"
            yield (name, "shape"), _failed(side, what, text)
        else:
            own = replace(case, checks={checks[name]: [name]})
            try:
                (row,) = judged(own, {name: x}, dtype, [checks[name]])
            except ConfigError as error:  # of another type
                yield (name, "type"), _failed(side, what, str(error))
            else:
                yield (what, ""), replace(row, a=side.name)


def _not_checked(computed: Sequence[SideResults]) -> Iterator[str]:
    """Yield which tensors a side does not return, by check, and which cases it leaves out."""
    missing, of_check = Counter[str](), Counter[str]()
    for one in computed:
        for check, names in one.case.checks.items():
            of_check[check] += len(names)
            missing[check] += len(names) if one.failure else len({*names} - one.results.keys())
            missing[check] -= len(names) * bool(one.left_out)
            of_check[check] -= len(names) * bool(one.left_out)
    for check, count in missing.items():
        if count:
            part = "" if count == of_check[check] else f" ({count} of {of_check[check]} tensors)"
            yield check + part
    reasons: dict[str, list[str]] = {}
    for one in computed:
        if one.left_out:
            reasons.setdefault(one.left_out, []).append(one.case.name)
    yield from (f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


def _failed(side: CellSide, what: str, reason: str) -> ComparedTensor:
    return ComparedTensor(side.name, REFERENCE, what, what, "forward", 0.0, reason)
