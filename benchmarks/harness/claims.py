"""The frame of every benchmark: its flags, what it claims, how it ends.

A script adds what it measures to `Findings` and ends with `raise SystemExit(main())`:

    def main() -> int:
        chosen = flags(__doc__).parse_args()
        return measured("name", lambda findings: ..., patience_s=PATIENCE_S[chosen.quick])

It prints a table, then one JSON line. The exit code is 0 (met), 1 (missed) or 3 (not measurable on
a machine that others keep busy, or not to be told from so few repeats).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.machine import (
    BUSY_SHARE,
    LoadWatch,
    commit,
    machine,
    own_cpu_s,
    versions,
    wait_until_quiet,
)

MET, MISSED, NOT_MEASURABLE, UNTOLD = "met", "missed", "not_measurable", "cannot_be_told"
EXIT_CODES = {MET: 0, MISSED: 1, NOT_MEASURABLE: 3, UNTOLD: 3}
PATIENCE_S = {True: 10.0, False: 60.0}
"""With `--quick` or without: how long to wait for a quiet machine."""


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
        """How it ended: met, missed, or not to be told where its interval holds the limit."""
        if self.met:
            return MET
        ends = self.interval or (self.value,)
        unknown = any(map(math.isnan, ends)) and not math.isnan(self.value)
        return UNTOLD if unknown or any(map(self._keeps, ends)) else MISSED

    def _keeps(self, value: float) -> bool:
        if self.relation == "<=":
            return value <= self.limit
        return value >= self.limit if self.relation == ">=" else value == self.limit


@dataclass(frozen=True)
class Sample:
    """Median and spread of repeated measurements."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Summarise; NaN where there is nothing."""
        if not values:
            return cls(float("nan"), float("nan"), float("nan"), 0)
        return cls(statistics.median(values), min(values), max(values), len(values))

    def spelt(self, form: str) -> str:
        """The median and, in brackets, the range."""
        return f"{self.median:{form}} ({self.low:{form}} - {self.high:{form}})"


@dataclass
class Findings:
    """Claims, and further numbers for the JSON line."""

    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    def at_least(self, name: str, value: float, limit: float, *, timing: bool = True) -> None:
        """Claim a number that should be large; `timing=False` where other load cannot spoil it."""
        self.claims.append(Claim(name, value, ">=", limit, timing))

    def at_most(self, name: str, value: float, limit: float, *, timing: bool = True) -> None:
        """Claim a number that should be small; `timing=False` where other load cannot spoil it."""
        self.claims.append(Claim(name, value, "<=", limit, timing))

    def exact(self, name: str, value: float, expected: float) -> None:
        """Claim a number that holds on any machine."""
        self.claims.append(Claim(name, value, "==", expected, timing=False))


# -- the end --------------------------------------------------------------------------------------


def verdict(claims: Sequence[Claim], *, others_load: float) -> str:
    """Missed if a count is wrong; else not measurable if others spoilt timings; else the worst."""
    if any(claim.ended == MISSED for claim in claims if not claim.timing):
        return MISSED
    if others_load > BUSY_SHARE and any(claim.timing for claim in claims):
        return NOT_MEASURABLE
    ends = {claim.ended for claim in claims}
    return next((ended for ended in (MISSED, UNTOLD) if ended in ends), MET)


def flags(
    about: str | None, *, quick: str = "fewer and shorter turns", parts: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """The flags of a script: `--quick`, and `--only` where it has parts.

    Args:
        about: shown by `--help`; the docstring of the script.
        quick: what the flag changes.
        parts: names, of which `chosen.only` is some, or None.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    if names := list(parts):
        parser.add_argument(
            "--only", nargs="+", action="extend", choices=names, metavar="PART",
            help=f"some of: {' '.join(names)}",
        )  # fmt: skip
    return parser


def measured(
    name: str,
    measure: Callable[[Findings], None],
    *,
    packages: Sequence[str] = ("mlxhog", "numpy"),
    patience_s: float = 0.0,
) -> int:
    """Measure, and print what came of it; returns the exit code.

    Args:
        name: of the benchmark.
        measure: adds claims and numbers to the findings, and prints its progress.
        packages: whose versions are recorded.
        patience_s: how long to wait for a quiet machine first; 0 where nothing is timed.
    """
    if patience_s:
        wait_until_quiet(patience_s)
    watch, cpu, findings = LoadWatch(), own_cpu_s(), Findings()
    measure(findings)
    return finish(
        name,
        findings.claims,
        others_load=watch.stop(own_cpu_s() - cpu),
        results=findings.results,
        packages=packages,
    )


def finish(
    name: str,
    claims: Sequence[Claim],
    *,
    others_load: float,
    results: Mapping[str, Any],
    packages: Sequence[str] = ("mlxhog", "numpy"),
) -> int:
    """Print the claims and, last, one JSON line; return the exit code.

    Args:
        name: of the benchmark.
        claims: what it has to show.
        others_load: cores' worth of CPU that others used meanwhile, from `LoadWatch`.
        results: further numbers for the JSON line (`Sample`s become objects).
        packages: whose versions to record.
    """
    ended = verdict(claims, others_load=others_load)
    print()
    marks = {MET: "met   ", MISSED: "MISSED", UNTOLD: "untold"}
    for claim in claims:
        within = "" if claim.interval is None else " ({:.4g} to {:.4g})".format(*claim.interval)
        limit = f"{claim.relation} {claim.limit:g}"
        print(f"  {marks[claim.ended]}  {claim.name}: {claim.value:.4g}{within} (wanted {limit})")
    if others_load > BUSY_SHARE and any(claim.timing for claim in claims):
        print(
            f"  busy machine: others used {others_load:.2f} cores meanwhile (load average "
            f"{os.getloadavg()[0]:.2f}); timings are not measurable, stop them and run this again"
        )
    line = {
        "benchmark": name,
        "verdict": ended,
        "claims": [_plain({**asdict(claim), "met": claim.met}) for claim in claims],
        **_plain(results),
        "others_load": round(others_load, 3),
        "machine": machine(),
        "versions": versions(*packages),
        "commit": commit(),
    }
    print(json.dumps(line), flush=True)
    return EXIT_CODES[ended]


def _plain(value: Any) -> Any:
    """Samples as objects and NaN as null, at any depth."""
    if isinstance(value, Sample):
        return _plain(asdict(value))
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
