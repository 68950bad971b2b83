"""The frame of every benchmark: its flags, its statistics, what it claims, how it ends.

A script says what it measures, and ends with `raise SystemExit(main())`:

    def main() -> int:
        chosen = flags(__doc__, quick="two turns").parse_args()
        return measured("name", chosen, measure, packages=("torch",), quiet=True)

`measure(findings, chosen)` adds claims and numbers to the findings. The frame prints them, then one
JSON line. The exit code is 0 (met), 1 (missed) or 3 (not measurable on a machine that others keep
busy, or not to be decided by so few repeats). The frame of `experiments/` rests on this one.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from harness.machine import BUSY_SHARE, LoadWatch, commit, machine, versions, wait_until_quiet

from mlxhog.files import plain_json

MET, MISSED, NOT_MEASURABLE, UNTOLD = "met", "missed", "not_measurable", "cannot_be_told"
EXIT_CODES = {MET: 0, MISSED: 1, NOT_MEASURABLE: 3, UNTOLD: 3}
TINY, QUICK, FULL = "tiny", "quick", "full"
MODES = {
    QUICK: "one seed, minutes (default)",
    FULL: "three seeds, the documents' sizes",
    TINY: "does it run? its numbers mean nothing",
}
"""Flags of experiments."""
CONFIDENCE = 0.95


# -- repeated measurements -------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Summarise; NaN where there is nothing."""
        if not values:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def of_ratios(cls, dividends: Sequence[float], divisors: Sequence[float]) -> Sample:
        """Summarise the ratios of the same turns, so that a slow spell hits both sides.

        A turn whose divisor is not above 0 (a time to a goal that was not reached) is left out.
        """
        pairs = zip(dividends, divisors, strict=True)
        return cls.of([dividend / divisor for dividend, divisor in pairs if divisor > 0])

    def spelt(self, form: str) -> str:
        """The median and, in brackets, the range."""
        return f"{self.median:{form}} ({self.low:{form}} - {self.high:{form}})"


@dataclass(frozen=True)
class Mean:
    """A mean and half of its 95 % interval by Student's t; NaN with fewer than two values."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Of independent values, taken as normal."""
        from scipy import stats

        values = list(values)
        n = len(values)
        if n < 2:
            return cls(statistics.fmean(values), math.nan)
        share = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
        return cls(statistics.fmean(values), share * statistics.stdev(values) / math.sqrt(n))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


# -- claims ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One number and the limit it has to keep.

    Attributes:
        name: what was measured, with its unit.
        value: the measurement (a median, where repeated).
        relation: "<=" or ">=" or "==".
        limit: what `value` must be in relation to.
        timing: False for a claim that holds on a busy machine as well (a count).
        interval: where the value lies by its repeats; None for a number without one.
    """

    name: str
    value: float
    relation: str
    limit: float
    timing: bool = True
    interval: tuple[float, float] | None = None

    @property
    def met(self) -> bool:
        """Whether the value, with all of its interval, keeps the limit; NaN keeps none."""
        return all(map(self._keeps, self.interval or (self.value,)))

    @property
    def ended(self) -> str:
        """How it ended: met, missed, or undecided where its interval holds the limit."""
        if self.met:
            return MET
        ends = self.interval or (self.value,)
        unknown = any(map(math.isnan, ends)) and not math.isnan(self.value)
        return UNTOLD if unknown or any(map(self._keeps, ends)) else MISSED

    def _keeps(self, value: float) -> bool:
        if self.relation == "<=":
            return value <= self.limit
        return value >= self.limit if self.relation == ">=" else value == self.limit


@dataclass
class Findings:
    """What a script adds to.

    Attributes:
        claims: numbers with limits.
        results: further numbers for the JSON line; `Sample`s become objects.
        others_load: cores' worth of CPU that others used while it counted; None is all the time.
    """

    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    others_load: float | None = None

    def at_least(self, name: str, value: float, limit: float, *, timing: bool = True) -> None:
        """Claim a number that should be large; `timing=False` where other load cannot spoil it."""
        self.claims.append(Claim(name, value, ">=", limit, timing))

    def at_most(self, name: str, value: float, limit: float, *, timing: bool = True) -> None:
        """Claim a number that should be small; `timing=False` where other load cannot spoil it."""
        self.claims.append(Claim(name, value, "<=", limit, timing))

    def exact(self, name: str, value: float, expected: float) -> None:
        """Claim a number that holds on any machine."""
        self.claims.append(Claim(name, value, "==", expected, timing=False))


def verdict(claims: Sequence[Claim], *, others_load: float) -> str:
    """Missed if a count is wrong; else not measurable if others spoilt timings; else the worst."""
    if any(claim.ended == MISSED for claim in claims if not claim.timing):
        return MISSED
    if others_load > BUSY_SHARE and any(claim.timing for claim in claims):
        return NOT_MEASURABLE
    ends = {claim.ended for claim in claims}
    return next((ended for ended in (MISSED, UNTOLD) if ended in ends), MET)


# -- one run of a script ---------------------------------------------------------------------------


def flags(about: str | None, *, parts: Iterable[str] = (), **modes: str) -> argparse.ArgumentParser:
    """The flags of a script.

    Args:
        about: shown by `--help`; the docstring of the script.
        parts: names, of which `chosen.only` is some, or None.
        modes: flags of which at most one is set, and what each changes: `quick="two turns"`.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group() if modes else parser
    for mode, change in modes.items():
        group.add_argument(f"--{mode}", action="store_true", help=change)
    if names := list(parts):
        parser.add_argument(
            "--only", nargs="+", action="extend", choices=names, metavar="PART",
            help=f"some of: {' '.join(names)}",
        )  # fmt: skip
    return parser


def mode_of(chosen: Namespace) -> str:
    """The one of `MODES` that the flags ask for."""
    return next((mode for mode in (FULL, TINY) if getattr(chosen, mode)), QUICK)


def measured(
    name: str,
    chosen: Namespace,
    measure: Callable[[Findings, Namespace], None],
    *,
    packages: Sequence[str] = (),
    quiet: bool = False,
) -> int:
    """Measure, and print what was measured; returns the exit code.

    Args:
        name: of the benchmark.
        chosen: the flags.
        measure: adds claims and numbers to the findings, and prints its progress.
        packages: whose versions are recorded, beside mlxhog and numpy.
        quiet: whether to wait for a quiet machine first: a minute, with `--quick` 10 s.
    """
    findings = Findings()
    if quiet:
        before = wait_until_quiet(10.0 if chosen.quick else 60.0)
        findings.results["others_load_before"] = round(before, 3)
    watch = LoadWatch()
    measure(findings, chosen)
    others_load = watch.stop() if findings.others_load is None else findings.others_load
    print()
    show(findings.claims, others_load)
    return finish({"benchmark": name, **document(findings, others_load, packages)})


def document(findings: Findings, others_load: float, packages: Sequence[str]) -> dict[str, Any]:
    """Verdict, claims and numbers of a result, and what they were measured with."""
    return {
        "verdict": verdict(findings.claims, others_load=others_load),
        "claims": [{**asdict(claim), "met": claim.met} for claim in findings.claims],
        **_as_objects(findings.results),
        "others_load": round(others_load, 3),
        "machine": machine(),
        "versions": versions("mlxhog", "numpy", *packages),
        "commit": commit(),
    }


def show(claims: Sequence[Claim], others_load: float) -> None:
    """Print the claims, and whether others kept the machine busy."""
    marks = {MET: "met   ", MISSED: "MISSED", UNTOLD: "untold"}
    for claim in claims:
        within = "" if claim.interval is None else " ({:.4g} to {:.4g})".format(*claim.interval)
        if "nan" in within and not math.isnan(claim.value):
            within = " (one run, so no interval)"
        limit = f"{claim.relation} {claim.limit:g}"
        print(f"  {marks[claim.ended]}  {claim.name}: {claim.value:.4g}{within} (wanted {limit})")
    if others_load > BUSY_SHARE and any(claim.timing for claim in claims):
        print(
            f"  busy machine: others used {others_load:.2f} cores meanwhile (load average "
            f"{os.getloadavg()[0]:.2f}); timings are not measurable, stop them and run this again"
        )


def finish(result: Mapping[str, Any]) -> int:
    """Print a result as one JSON line; return the exit code of its verdict."""
    print(plain_json.dumps(result).decode(), flush=True)
    return EXIT_CODES[result["verdict"]]


def _as_objects(value: Any) -> Any:
    """Samples as objects, at any depth."""
    if isinstance(value, Sample):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_as_objects(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _as_objects(item) for key, item in value.items()}
    return value
