"""Compute a subject by every side, compare, and tell the outcome to people and to programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.parity import compare, tolerances
from mlxhog.parity.compare import Row
from mlxhog.parity.compute import Perturbation, Tell, computed_results
from mlxhog.parity.subject import Results, Side, Subject, perturbed
from mlxhog.report.table import Answer, Failure, Section

MOST_NAMES = 50  # characters of the sides' names in the answer
MOST_FAILURES = 4  # of a kind in the table; the JSON has all
_GROUPS = ("stepwise", "sgd", "momentum", "adamw", "parallel", "chunkwise", "recurrent", "sequence")


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        subject: what was computed.
        sides: who computed it, the reference first.
        rows: every two tensors that were compared.
        first_bad: the disagreement that comes first in the computation; None where all agree.
        perturbation: what one side got another value of.
        seconds: how long it took.
    """

    subject: Subject
    sides: Sequence[Side]
    rows: Sequence[Row]
    first_bad: Row | None
    perturbation: Perturbation | None
    seconds: float

    @property
    def missed(self) -> bool:
        """Whether a parameter was perturbed and no comparison shows it."""
        return self.perturbation is not None and self.first_bad is None

    @property
    def unmet(self) -> list[str]:
        """Recorded results that no side computed, and which are therefore not compared."""
        met = {(row.b, row.against) for row in self.rows}
        return [
            f"not compared: {side} {name}, which nobody computed"
            for side, results in self.subject.recorded.items()
            for name in results
            if (side, name) not in met
        ]

    @property
    def ok(self) -> bool:
        """Whether everything agrees, and a perturbed parameter was not overlooked."""
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
            "recorded": list(self.subject.recorded),
            "perturbed": perturbation,
            "first_bad": None if self.first_bad is None else self.first_bad.to_json(),
            "seconds": round(self.seconds, 3),
            "reasons": {kind: tolerances.of(kind, "float32").reason for kind in kinds},
            "rows": [row.to_json() for row in self.rows],
        }


def compare_sides(
    subject: Subject,
    sides: Sequence[Side],
    tell: Tell,
    *,
    perturb: str | None = None,
    seed: int = 0,
    save: Path | None = None,
) -> Comparison:
    """Compute a subject by every side and compare every number.

    Args:
        subject: what to compute, checked.
        sides: who computes it, the reference first.
        tell: called with (side, "") when a side begins.
        perturb: an input that the first side after the reference gets another value of.
        seed: of that value.
        save: .npz file for all arrays.

    Raises:
        ConfigError: there is nothing to compare, or no such input to perturb.
        WorkerFailed: a side could not compute it.
        EnvironmentLacks: `save` cannot be written.
    """
    if len(sides) + len(subject.recorded) < 2:
        raise ConfigError(
            f"{sides[0].name} alone has nothing to be compared with; give --backends two names, or "
            "a recorded case"
        )
    begin = time.perf_counter()
    perturbation = None
    if perturb is not None:
        side = sides[min(1, len(sides) - 1)].name
        value = perturbed(subject.inputs, perturb, seed)
        perturbation = Perturbation(side, perturb, value)
    with computed_results(subject, sides, perturbation, tell) as results:
        rows, computed = compare_all(subject, sides, results)
        bad = compare.first_bad(rows, computed)
        if save is not None:
            try:
                save_arrays(save, computed, subject.recorded)
            except OSError as error:
                raise EnvironmentLacks(
                    f"--save {save}: {error.strerror or error}; choose another place"
                ) from error
    return Comparison(subject, sides, rows, bad, perturbation, time.perf_counter() - begin)


def compare_all(
    subject: Subject, sides: Sequence[Side], results: Mapping[str, Results]
) -> tuple[list[Row], dict[str, Results]]:
    """Compare all that can be compared.

    Args:
        subject: what was computed.
        sides: who computed it, the reference first.
        results: of every side by its name, as `computed_results` yields them.

    Returns:
        A row for every two tensors, and the results without the conditions among them.
    """
    computed: dict[str, Results] = {}
    conditions: dict[str, float] = {}
    for name, mine in results.items():
        computed[name], known = tolerances.split(mine)
        conditions |= known
    return list(compare.rows(subject, sides, computed, conditions)), computed


def sections(
    comparison: Comparison, notes: Sequence[str], *, everything: bool
) -> Iterator[Section]:
    """Arrange a comparison for `mlxhog.report.table.show`: the answer, then rows.

    Args:
        comparison: the outcome.
        notes: lines for below.
        everything: the worst of each kind, over all sides that are compared with the same one,
            then a line for every tensor; else those that fail, up to `MOST_FAILURES` of a kind.
    """
    rows, groups = comparison.rows, dict[tuple[str, str], list[Row]]()
    for row in rows:
        groups.setdefault((_reference_of(row), _group(row)), []).append(row)
    lines: list[tuple[str, ...]] = []
    for group in groups.values():
        lines += map(_line, group if everything else _worst_failures(group))
    yield Section("", notes=[answer(comparison)])
    header = ("", "what", "side", "against", "max abs", "max rel", "allowed", "at")
    if everything:
        worst = [_line(_worst(group), len(group)) for group in groups.values()]
        yield Section("the worst of each kind", header, worst)
    hint = [] if everything else ["--all has the worst of each kind, and a line for every tensor"]
    yield Section(comparison.subject.title, header, lines, [*notes, *_closest(rows), *hint])


def answer(comparison: Comparison) -> str:
    """Whether all agree, in a line."""
    rows, names = comparison.rows, [side.name for side in comparison.sides]
    failed = sum(not row.ok for row in rows)
    if failed:
        return Failure(f"FAILED: {failed} of {len(rows)} disagree")
    if comparison.missed:
        return Failure("FAILED: a parameter was perturbed, and nobody noticed")
    sides = ", ".join([*names, *comparison.subject.recorded])
    if len(sides) > MOST_NAMES:
        sides = f"{len(names)} sides"
    return Answer(f"Yes: all {len(rows):,} agree ({sides})")


def _closest(rows: Sequence[Row]) -> Iterator[str]:
    """Which agreement is closest to its limit."""
    good = [row for row in rows if row.ok and row.max_abs is not None]
    if good:
        row = max(good, key=lambda row: row.pressure)
        yield (
            f"closest to its limit: {row.what} of {row.a} against {_against(row)}, at "
            f"{row.pressure:.0%} of what is allowed"
        )


def _worst_failures(group: Sequence[Row]) -> list[Row]:
    bad = [row for row in group if not row.ok]
    return sorted(bad, key=lambda row: -row.pressure)[:MOST_FAILURES]


def _worst(group: Sequence[Row]) -> Row:
    """The row that is farthest beyond its limit, or else closest to it."""
    return max(group, key=lambda row: (not row.ok, row.pressure))


def _reference_of(row: Row) -> str:
    """The side that a row is judged by, where the forms of one backend count as one."""
    return _against(row).partition("+")[0]


def _against(row: Row) -> str:
    return "itself" if row.a == row.b else row.b


def _group(row: Row) -> str:
    """Return the kind of a row, with the form or rule that it is about."""
    words = row.what.split("/")
    return "/".join(word for word in words[:2] if word in _GROUPS or word == row.kind) or row.kind


def _line(row: Row, count: int = 1) -> tuple[str, ...]:
    """A row as cells; `count` says for how many it stands."""
    place = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    tensor = row.what.removeprefix(_group(row)).lstrip("/")
    at = f"{tensor}{place}"
    return (
        "PASS" if row.ok else "FAIL",
        f"{_group(row)} x{count}" if count > 1 else _group(row),
        row.a,
        _against(row),
        _number(row.max_abs),
        _number(row.max_rel),
        _number(row.tolerance),
        at if row.max_abs is not None else f"{at} {row.reason}",
    )


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.1e}"


def describe(row: Row) -> str:
    """Return a line that names a disagreement."""
    where = f"[{', '.join(map(str, row.where))}]" if row.where else ""
    against = "itself over the whole sequence" if row.b == row.a else row.b
    if row.max_abs is None:
        values = f" ({row.got} and {row.wanted})" if row.where else ""
        return f"{row.what}{where}: {row.a} and {against}: {row.reason}{values}"
    unit = f" {row.unit}" if row.unit else ""
    return (
        f"{row.what}{where}: {row.a} has {row.got:.9g} and {against} {row.wanted:.9g}, "
        f"{row.max_abs:.2g}{unit} apart, allowed {row.tolerance:.2g}"
    )


def check_save_path(path: Path) -> None:
    """Refuse a file that `save` could not write, before anything is computed for it.

    Raises:
        ConfigError: it is a directory, or its directory is missing or cannot be written into.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"--save {path} is a directory; name a file in it, like arrays.npz")
        partial = _partial(path)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ConfigError(
            f"--save {path}: {error.strerror or error}; name a file in a directory that is there "
            "and can be written into"
        ) from error


def save_arrays(
    path: Path, computed: Mapping[str, Results], recorded: Mapping[str, Results]
) -> None:
    """Write every array as SIDE/NAME into an uncompressed .npz file, which appears whole.

    Raises:
        OSError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        f"{side}/{name}": value
        for side, results in (*computed.items(), *recorded.items())
        for name, value in results.items()
    }
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
