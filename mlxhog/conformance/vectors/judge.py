"""Judge what a program of any language wrote for exported cases; `FORMAT.md` describes the files.

A claim names a case, or cases by a pattern, and some of their checks; a pattern claims the checks
that a case has in the dtype. Every tensor of a claim has to be there, and no other one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxhog.base import mapped, plain_json, tensors, typed
from mlxhog.conformance.compare import ComparedTensor, measured
from mlxhog.conformance.subject import Array, Results
from mlxhog.conformance.vectors import case as vectors
from mlxhog.conformance.vectors.case import FORMAT, STEPS, Case
from mlxhog.display.table import cut
from mlxhog.errors import ConfigError, did_you_mean, message_of, shown

if TYPE_CHECKING:
    from mlxhog.conformance.vectors.faults import Guess

REFERENCE = "reference"
CLAIMS = "results.json"
DTYPES = {one.name: one for one in mapped.FLOATS}
"""Types of results by their names; float32 and float64 may store results of any of them."""
BADGE = "https://img.shields.io/badge"
MAX_NAME = 40  # characters of an implementation's name in a table


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The content of results.json."""

    format: int
    implementation: str
    dtype: str
    claims: Mapping[str, tuple[str, ...]]  # cases, by name or pattern, and their checks


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """The comparison of results with the expected tensors."""

    title: str  # of the set of cases
    claims: Claims
    rows: Sequence[ComparedTensor]  # in the order of cases, checks and tensors
    checked: Mapping[str, Sequence[str]]  # case -> the checks that were claimed
    not_checked: Mapping[str, Sequence[str]]  # case -> the others
    guesses: Sequence["Guess"] = ()  # what may be wrong, the likeliest first

    @cached_property
    def first_bad(self) -> ComparedTensor | None:
        """The first tensor that departs; None if all agree."""
        return next((row for row in self.rows if not row.ok), None)

    @property
    def badge(self) -> str:
        """A line of Markdown for a README."""
        good = sum(row.ok for row in self.rows)
        cases = f"{len(self.checked)} of {len({*self.checked, *self.not_checked})} cases"
        said = f"{good} of {len(self.rows)} tensors in {cases}, {self.claims.dtype}"
        color = "brightgreen" if good == len(self.rows) else "red"
        label, message = (x.replace("-", "--").replace(" ", "_") for x in (self.title, said))
        return f"![conformance]({BADGE}/{label}-{message}-{color})"

    def notes(self) -> Iterator[str]:
        """Yield what was not checked, a line for each combination of checks."""
        of_checks: dict[tuple[str, ...], list[str]] = {}
        for name, others in self.not_checked.items():
            of_checks.setdefault(tuple(others), []).append(name)
        for others, names in of_checks.items():
            yield f"not checked: {', '.join(others)} of {', '.join(names)}"

    def to_json(self) -> dict[str, Any]:
        """Return what `mlxhog parity judge --json` prints."""
        return {
            "ok": self.first_bad is None,
            "subject": self.title,
            "backends": [self.claims.implementation, REFERENCE],
            "dtype": self.claims.dtype,
            "first_bad": self.first_bad and self.first_bad.to_json(),
            "guesses": [asdict(guess) for guess in self.guesses],
            "reasons": {row.what: row.reason for row in self.rows},
            "rows": [row.to_json() for row in self.rows],
            "checked": self.checked,
            "not_checked": self.not_checked,
            "badge": self.badge,
            "notes": [*self.notes()],
        }


def judge(folder: Path, results: Path) -> Judgment:
    """Compare the results in a folder with a set of cases in another.

    Raises:
        DataError: the cases are damaged, or of another version of the format.
        ConfigError, CheckpointError: results are missing, foreign or malformed, or nothing is
            claimed.
    """
    known = vectors.names(folder)
    manifest = plain_json.read(folder / vectors.MANIFEST)  # which `names` has checked
    title = f"mlxhog vectors {manifest.get('set')} {manifest.get('version')}"
    claims = _read_claims(results / CLAIMS)
    asked = _by_case(claims, known, results / CLAIMS)
    checked, not_checked = dict[str, Sequence[str]](), dict[str, Sequence[str]]()
    compared = list[tuple[Case, Results, list[ComparedTensor]]]()
    files = {path for path in results.iterdir() if path.suffix in (".safetensors", ".npy")}
    for name in known:
        case = Case.read(folder, name)
        if own := _checks(case, claims, asked.get(name, {})):
            computed, used = _tensors(results, name)
            rows = judged(case, computed, claims.dtype, own, claims.implementation)
            compared.append((case, computed, rows))
            files, checked[name] = files - used, own
        if others := [one for one, names in case.checks.items() if names and one not in own]:
            not_checked[name] = others
    if files:
        stray = min(files).name
        raise ConfigError(
            f"{shown(str(results / stray))} belongs to no case that {CLAIMS} claims"
            f"{did_you_mean(stray.partition('.')[0], checked)}; add a claim, or remove the file"
        )
    if not compared:
        raise ConfigError(
            f"{shown(str(results / CLAIMS))} claims nothing that can be checked in {claims.dtype}; "
            'claim checks of cases, such as {"' + known[0] + '": ["forward"]}'
        )
    every = [row for _, _, rows in compared for row in rows]
    guessed: Sequence[Guess] = ()
    if not all(row.ok for row in every):
        from mlxhog.conformance.vectors.faults import Judged, guesses  # they import torch

        guessed = guesses([Judged(*one) for one in compared])
    return Judgment(
        title=title, claims=claims, rows=every, checked=checked, not_checked=not_checked,
        guesses=guessed,
    )  # fmt: skip


def judged(
    case: Case, results: Results, dtype: str, claimed: Sequence[str], side: str = "results"
) -> list[ComparedTensor]:
    """Compare the results of one case, by name ("h", "state.C", "steps.h", "grad.q").

    `claimed` are the checks whose tensors are compared, `dtype` the one whose tolerances count.
    A row that fails has the first entry that departs (`where`, `got`, `wanted`), not the worst one.

    Raises:
        ConfigError: a tensor is missing or not claimed, or has another shape or type; or the case
            has no such check, or no tolerances in this dtype.
    """
    if dtype not in case.tolerances or dtype not in DTYPES:
        known = ", ".join(name for name in case.tolerances if name in DTYPES)
        raise ConfigError(f"{case.name} is not judged in dtype {shown(dtype)}; choose from {known}")
    if unknown := [check for check in claimed if not case.checks.get(check)]:
        there = ", ".join(check for check, own in case.checks.items() if own)
        raise ConfigError(f"{case.name} has no check {shown(unknown[0])}; it has {there}")
    names = {name: check for check in claimed for name in case.checks[check]}
    if extra := results.keys() - names.keys():
        raise ConfigError(
            f"{case.name} has the tensor {shown(min(extra))}, which belongs to no claimed check"
            f"{did_you_mean(min(extra), names)}; claim its check, or leave the tensor out"
        )
    rows = []
    for name, check in names.items():
        stem = name.removeprefix(STEPS)
        expected, (most, why) = case.expected[stem], case.tolerances[dtype][stem]
        got = _usable(case, name, check, results.get(name), expected, dtype)
        row = ComparedTensor(
            cut(side, MAX_NAME), REFERENCE, f"{case.name}/{name}", stem, check, most, why
        )
        same = np.isinf(expected) & (got == expected)
        got, expected = (np.where(same, 0.0, x.astype(np.float64)) for x in (got, expected))
        row = measured(row, got, expected, float(np.abs(expected).max(initial=0.0)))
        if not row.ok:
            first = departing(got, expected, most)[0]
            at = tuple(map(int, first))
            row = replace(row, where=at, got=float(got[at]), wanted=float(expected[at]))
        rows.append(row)
    return rows


def departing(got: Array, expected: Array, most: float) -> Array:
    """Return the indices of entries that are further from the expected ones than allowed."""
    with np.errstate(invalid="ignore"):
        return np.argwhere(~(np.abs(got - expected) <= most))


def _usable(
    case: Case, name: str, check: str, got: Array | None, expected: Array, dtype: str
) -> Array:
    """Return a result of the right shape and type."""
    what = f"{case.name}: {name}"
    if got is None:
        raise ConfigError(
            f"{what} is missing, though {check} is claimed; write it, or claim without {check}"
        )
    if got.shape != expected.shape:
        is_transposed = expected.ndim > 1 and got.shape == expected.swapaxes(-1, -2).shape
        raise ConfigError(
            f"{what} has the shape {got.shape}, expected {expected.shape}"
            f"{' (is it transposed?)' * is_transposed}; write it in the shape of "
            f"expected.{name.removeprefix(STEPS)} in {case.name}.json"
        )
    if got.dtype not in (DTYPES[dtype], np.dtype("<f4"), np.dtype("<f8")):
        types = " or ".join(dict.fromkeys((dtype, "float32", "float64")))
        raise ConfigError(f"{what} has the type {got.dtype}, expected {types}; convert it")
    return got


def _read_claims(path: Path) -> Claims:
    """Read results.json."""
    try:
        record = plain_json.read(path)
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        if record.get("format") != FORMAT:
            raise ValueError(f"its format is {shown(record.get('format'))}, expected {FORMAT}")
        claims = typed.read(Claims, record)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{shown(str(path))} cannot be used: {message_of(error)}; write it as README.md of the "
            "vectors describes"
        ) from error
    if claims.dtype not in DTYPES:
        raise ConfigError(
            f"{shown(str(path))} has the dtype {shown(claims.dtype)}; choose from "
            f"{', '.join(DTYPES)}{did_you_mean(claims.dtype, DTYPES)}"
        )
    return claims


def _by_case(claims: Claims, known: Sequence[str], path: Path) -> dict[str, dict[str, bool]]:
    """Return the claimed checks of each case, and whether its name claims it."""
    asked: dict[str, dict[str, bool]] = {}
    for pattern, own in claims.claims.items():
        cases = [pattern] if pattern in known else [x for x in known if fnmatchcase(x, pattern)]
        if not cases:
            raise ConfigError(
                f"{shown(str(path))} claims {shown(pattern)}, but no exported case has this name"
                f"{did_you_mean(pattern, known)}; the set has {cut(', '.join(known), 200)}"
            )
        for name in cases:
            entry = asked.setdefault(name, {})
            entry |= {check: entry.get(check, False) or pattern == name for check in own}
    return asked


def _checks(case: Case, claims: Claims, asked: Mapping[str, bool]) -> list[str]:
    """Return the claimed checks of a case, without those that it lacks and a pattern claims."""
    has_dtype = claims.dtype in case.tolerances
    if unknown := [check for check in asked if check not in case.checks]:
        raise ConfigError(
            f"{case.name}: no check is called {shown(unknown[0])}"
            f"{did_you_mean(unknown[0], case.checks)}; choose from {', '.join(case.checks)}"
        )
    own = [check for check, named in asked.items() if named or (has_dtype and case.checks[check])]
    return [check for check in case.checks if check in own]


def _tensors(folder: Path, name: str) -> tuple[dict[str, Array], set[Path]]:
    """Return the results of a case, and the files that have them."""
    whole = folder / f"{name}.safetensors"
    parts = {
        path.name[len(name) + 1 : -len(".npy")]: path
        for path in sorted(folder.iterdir())
        if path.name.startswith(f"{name}.") and path.suffix == ".npy"
    }
    if whole.exists():
        return tensors.read(whole), {whole}
    return {one: _npy(path) for one, path in parts.items()}, {*parts.values()}


def _npy(path: Path) -> Array:
    """Read a file of NumPy's own format; its two bytes without a type are a bfloat16."""
    try:
        x: Array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ConfigError(
            f"{shown(str(path))} is not a file of one array: {message_of(error)}; write it by "
            "numpy.save, or use safetensors"
        ) from error
    return x.view(mapped.BFLOAT16) if x.dtype == np.dtype("V2") else x
