"""The frame of every benchmark: its flags, its statistics, what it claims, how it ends.

A script says what it measures, and ends with `raise SystemExit(main())`:

    def main() -> int:
        chosen = flags(__doc__, quick="two turns").parse_args()
        return measured("name", chosen, measure, packages=("torch",), quiet=True)

`measure(findings, chosen)` adds claims and numbers to the findings. The frame prints them, then one
JSON line. The exit code is 0 (met, or no limit of our own), 1 (missed) or 3 (not measurable on a
machine that others keep busy, or not to be decided by these repeats). The frame of `experiments/`
rests on this one.

Every script has `--tiny`: the work is as small as it gets, no exit code judges it, and of the
claims counts alone get a verdict. It takes the sizes of `--quick`, but for those that it gives as
`smallest(tiny, usual)`; the harness takes one turn and does not wait for a quiet machine.

A limit is compared with an estimate (`harness.estimates`), which brings its interval, its n and its
p-value; the p-values of all claims of a script are corrected together (`corrected`):

    times = take_turns(seeds, ("auto", "sync"), seconds)
    findings.at_least("sync / auto", Ratio.of(times["sync"], times["auto"]), 1.1)

An A/A arm is an arm that runs twice. It shows how often this script tells equal arms apart:

    times, again = with_twin(seeds, ("auto", "sync"), seconds, twin="sync")
    findings.same("sync", times["sync"], again)
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.estimates import ERROR, Estimate, Mean, Ratio, Share, holm
from harness.machine import (
    BUSY_SHARE,
    ROOT,
    LoadWatch,
    commit,
    machine,
    set_tiny,
    smallest,
    versions,
    wait_until_quiet,
)

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file

MET, MISSED, NOT_MEASURABLE, UNTOLD = "met", "missed", "not_measurable", "cannot_be_told"
NO_LIMIT = "no_limit"
EXIT_CODES = {MET: 0, NO_LIMIT: 0, MISSED: 1, NOT_MEASURABLE: 3, UNTOLD: 3}
WORDS = {
    MET: "met",
    MISSED: "missed",
    UNTOLD: "cannot be told",
    NOT_MEASURABLE: "not measurable",
    NO_LIMIT: "no limit of our own",
}
"""How verdicts are printed."""
TINY, QUICK, FULL = "tiny", "quick", "full"
MODES = {
    QUICK: "minutes (default)",
    FULL: "more seeds, the documents' sizes",
    TINY: "does it run? its numbers mean nothing",
}
"""Flags of experiments."""
LONGEST_ROW = 500  # characters of a list or object that stands in one line of a file


# -- repeated measurements -------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values):
        """Summarise; NaN where there is nothing."""
        if not values:
            return cls(math.nan, math.nan, math.nan, 0)
        return cls(statistics.median(values), min(values), max(values), len(values))

    def spelt(self, form):
        """The median and, in brackets, the range."""
        return f"{self.median:{form}} ({self.low:{form}} - {self.high:{form}})"


# -- claims ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One number and the limit it has to keep.

    Attributes:
        name: what was measured, with its unit.
        value: the measurement.
        relation: "<=", ">=" or "=="; "within" is from `least` to `limit`.
        limit: what `value` must be in relation to.
        timing: False for a claim that holds on a busy machine as well (a count).
        interval: where the value lies by its repeats; None for a number without one.
        n: how many measurements, or pairs of them, it rests on.
        p: two-sided p-value of the value being at its limit; None for a number without one.
        least: the lower limit of "within".
        p_of_page: `p`, corrected for the number of claims beside it (`corrected`).
        disturbed: whether others spoilt it, so that it has no verdict (`judged`).
    """

    name: str
    value: float
    relation: str
    limit: float
    timing: bool = True
    interval: tuple[float, float] | None = None
    n: int | None = None
    p: float | None = None
    least: float | None = None
    p_of_page: float | None = None
    disturbed: bool = False

    @classmethod
    def of(cls, name, estimate, relation, limit, *, least=None, timing=True):
        """Claim what an estimate is.

        Args:
            name: what was measured, with its unit.
            estimate: of it.
            relation: "<=", ">=", or "within" for two arms that should not differ by much.
            limit: of the estimate.
            least: the lower limit of "within".
            timing: whether other load can spoil it.
        """
        # To lie within limits, or outside them, a value has to differ from both.
        limits = [limit] if least is None else [least, limit]
        p = max(map(estimate.p, limits))
        interval = (estimate.low, estimate.high)
        return cls(name, estimate.value, relation, limit, timing, interval, estimate.n, p, least)

    @property
    def met(self):
        """Whether it keeps its limit with all of its interval."""
        return self.ended == MET

    @property
    def ended(self):
        """Met, missed, untold where its interval has the limit or is missing, or disturbed."""
        if self.disturbed:
            return NOT_MEASURABLE
        ends = self.interval or (self.value,)
        p = self.p if self.p_of_page is None else self.p_of_page
        if self.interval and any(map(math.isnan, ends)):
            return UNTOLD
        if p is not None and not p <= ERROR and ends[0] < ends[-1]:
            return UNTOLD
        if all(map(self._keeps, ends)):
            return MET
        return UNTOLD if any(map(self._keeps, ends)) else MISSED

    @property
    def measured(self):
        """The value with its interval and n; of a count, how often its trials may fail."""
        if self.interval is None:
            if not self.n or self.relation != "==" or math.isnan(self.value):
                return f"{self.value:.4g}" + " (no interval)" * (self.relation != "==")
            failures = Share(round(abs(self.value - self.limit)), self.n)
            rate = f"failures {failures.low:.2g} to {failures.high:.2g}"
            return f"{self.value:.4g} (n {self.n:,}, {rate})"
        if any(map(math.isnan, self.interval)):
            return f"{self.value:.4g} (n {self.n}, no interval)"
        low, high = self.interval
        n = "" if self.n is None else f", n {self.n:,}"
        return f"{self.value:.4g} ({low:.4g} to {high:.4g}{n})"

    @property
    def wanted(self):
        """The limit with its relation."""
        if self.least is not None:
            return f"{self.least:g} to {self.limit:g}"
        return f"{self.relation} {self.limit:g}"

    def to_json(self):
        """As it stands in a result."""
        return {**asdict(self), "met": self.met, "ended": self.ended}

    def _keeps(self, value):
        if self.least is not None:
            return self.least <= value <= self.limit
        if self.relation == "<=":
            return value <= self.limit
        return value >= self.limit if self.relation == ">=" else value == self.limit


def corrected(claims):
    """Correct the p-values of a page's claims for their number (`harness.estimates.holm`), once."""
    if any(claim.p_of_page is not None for claim in claims):
        return list(claims)
    known = [math.nan if claim.p is None else claim.p for claim in claims]
    return [
        claim if claim.p is None else replace(claim, p_of_page=p)
        for claim, p in zip(claims, holm(known), strict=True)
    ]


def judged(claims, others_load):
    """Correct a page's claims, and take their verdict from those that something has spoilt.

    Others' load spoils times; `--tiny` spoils whatever is an estimate, and decides counts only.
    """
    busy, tiny = others_load > BUSY_SHARE, smallest(True, False)

    def spoilt(claim):
        return (busy and claim.timing) or (tiny and claim.interval is not None)

    return [replace(claim, disturbed=spoilt(claim)) for claim in corrected(claims)]


@dataclass(frozen=True)
class Twin:
    """An arm that ran twice in pairs (A/A), and whether the harness told it from itself.

    Attributes:
        name: of the arm.
        estimate: ratio of the two, or their mean difference where a value is not above 0.
        p: that the true ratio is 1, or the difference 0.
    """

    name: str
    estimate: Estimate
    p: float

    @classmethod
    def of(cls, name, own, again):
        """Compare an arm with itself."""
        if all(value > 0 for value in (*own, *again)):
            ratio = Ratio.of(own, again)
            return cls(name, ratio, ratio.p(1.0))
        difference = Mean.of_differences(own, again)
        return cls(name, difference, difference.p(0.0))


def false_verdicts(twins):
    """Return how many A/A arms differ from themselves; corrected for their number."""
    return sum(p <= ERROR for p in holm([twin.p for twin in twins]))


@dataclass
class Findings:
    """What a script adds to.

    Attributes:
        claims: numbers with limits.
        results: further numbers for the JSON line; `Sample`s and estimates become objects.
        twins: A/A arms.
        seeds: of the measurements, where they have any.
        others_load: cores' worth of CPU that others used while it counted; None is all the time.
    """

    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    twins: list[Twin] = field(default_factory=list)
    seeds: tuple[int, ...] = ()
    others_load: float | None = None

    def at_least(self, name, value, limit, *, timing=True):
        """Claim a number that should be large; `timing=False` where other load cannot spoil it."""
        self._claim(name, value, ">=", limit, timing)

    def at_most(self, name, value, limit, *, timing=True):
        """Claim a number that should be small; `timing=False` where other load cannot spoil it."""
        self._claim(name, value, "<=", limit, timing)

    def within(self, name, value, least, limit, *, timing=True):
        """Claim that two arms hardly differ: the interval lies between two limits."""
        self.claims.append(Claim.of(name, value, "within", limit, least=least, timing=timing))

    def exact(self, name, value, expected, *, n=None, timing=False):
        """Claim a count; n is the number of trials, `timing` whether other load can spoil it."""
        self.claims.append(Claim(name, value, "==", expected, timing=timing, n=n))

    def same(self, name, own, again):
        """Add an A/A arm: what one arm measured, and what it measured again in the same pairs."""
        self.twins.append(Twin.of(name, own, again))

    def _claim(self, name, value, relation, limit, timing):
        if isinstance(value, Estimate):
            self.claims.append(Claim.of(name, value, relation, limit, timing=timing))
        else:
            self.claims.append(Claim(name, value, relation, limit, timing))


def verdict(claims, *, others_load):
    """Missed if a count is wrong; else not measurable if others spoilt timings; else the worst.

    Without a claim, and with `--tiny`, it is `NO_LIMIT`: there is no limit of our own.
    """
    if not claims or smallest(True, False):
        return NO_LIMIT
    return worst(claim.ended for claim in judged(claims, others_load))


def worst(ends):
    """The one of several verdicts that counts."""
    ends = set(ends)
    return next((ended for ended in (MISSED, NOT_MEASURABLE, UNTOLD) if ended in ends), MET)


# -- one run of a script ---------------------------------------------------------------------------


def _one_sentence(kind, error, trace):
    """Say which package a script lacks; show any other error as Python does."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    ours = any((folder / name).exists() for folder in (ROOT, ROOT / "benchmarks"))
    if not isinstance(error, ModuleNotFoundError) or ours:
        return sys.__excepthook__(kind, error, trace)
    print(
        f"{name} is not installed, and {os.path.basename(sys.argv[0])} needs it: "
        "python -m pip install -c constraints.txt -e '.[test,peers]'",
        file=sys.stderr,
    )


if (ROOT / "benchmarks") in Path(sys.argv[0]).resolve().parents:
    sys.excepthook = _one_sentence  # here, because scripts import packages after this module


def flags(about, *, parts=(), **modes):
    """The flags of a script.

    Args:
        about: shown by `--help`; the docstring of the script.
        parts: names, of which `chosen.only` is some, or None.
        modes: flags of which at most one is set, and what each changes: `quick="two turns"`;
            `tiny` is always there, and sets `quick` as well.
    """
    set_tiny(False)
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(tiny=False, quick=False)
    group = parser.add_mutually_exclusive_group()
    for mode, change in {**modes, TINY: MODES[TINY]}.items():
        action = _Tiny if mode == TINY else "store_true"
        group.add_argument(f"--{mode}", action=action, help=change)
    if names := list(parts):
        parser.add_argument(
            "--only", nargs="+", action="extend", choices=names, metavar="PART",
            help=f"some of: {' '.join(names)}",
        )  # fmt: skip
    return parser


class _Tiny(argparse.Action):
    """The flag `--tiny`."""

    def __init__(self, **options):
        super().__init__(nargs=0, **options)

    def __call__(self, parser, chosen, *_):
        chosen.tiny = chosen.quick = True
        set_tiny(True)


def mode_of(chosen):
    """The one of `MODES` that the flags ask for."""
    return next((mode for mode in (FULL, TINY) if getattr(chosen, mode, False)), QUICK)


def measured(name, chosen, measure, *, packages=(), quiet=False):
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
    show(findings, others_load)
    return finish({"benchmark": name, **document(findings, others_load, packages)})


def document(findings, others_load, packages):
    """Verdict, claims and numbers of a result, and what they were measured with."""
    claims = judged(findings.claims, others_load)
    ended = verdict(claims, others_load=others_load)
    if ended == MET and false_verdicts(findings.twins):
        ended = UNTOLD  # it tells equal arms apart, for a cause that nobody knows
    numbers = _as_objects(findings.results)
    seeds = {"seeds": findings.seeds} if findings.seeds else {}
    return {
        "verdict": ended,
        "claims": [claim.to_json() for claim in claims],
        "twins": {
            "comparisons": [
                {"name": twin.name, **twin.estimate.to_json(), "p": twin.p}
                for twin in findings.twins
            ],
            "false_verdicts": false_verdicts(findings.twins),
        },
        **seeds,
        **numbers,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "others_load": round(others_load, 3),
        "machine": machine(),
        "versions": versions("mlxhog", "numpy", *packages),
        "commit": commit(),
    }


def show(findings, others_load):
    """Print the claims, the A/A arms, and whether others kept the machine busy."""
    for claim in judged(findings.claims, others_load):
        ended = WORDS[claim.ended]
        ended = ended.upper() if claim.ended == MISSED else ended
        print(f"  {ended:14}  {claim.name}: {claim.measured} (wanted {claim.wanted})")
    if not findings.claims:
        print(f"  {WORDS[NO_LIMIT]}")
    if twins := findings.twins:
        values = "; ".join(f"{twin.name} {twin.estimate.spelt('.3f')}" for twin in twins)
        print(f"  A/A: {false_verdicts(twins)} false verdicts in {len(twins)} ({values})")
    if others_load > BUSY_SHARE and any(claim.timing for claim in findings.claims):
        print(
            f"  busy machine: others used {others_load:.2f} cores meanwhile (load average "
            f"{os.getloadavg()[0]:.2f}); timings are not measurable, stop them and run this again"
        )


def finish(result):
    """Print a result as one JSON line; return the exit code of its verdict."""
    print(plain_json.dumps(result).decode(), flush=True)
    return EXIT_CODES[result["verdict"]]


def write_rows(path, value):
    """Write a file of JSON with one row a line, so that a changed row is a changed line."""
    replace_file(path, f"{_rows(json.loads(plain_json.dumps(value)))}\n".encode())


def _rows(value, indent=""):
    """Short values, and those without a list or an object inside, in one line."""
    text = json.dumps(value)
    entries = value.values() if isinstance(value, dict) else value
    if len(text) <= LONGEST_ROW or not any(isinstance(entry, dict | list) for entry in entries):
        return text
    names = [f"{json.dumps(name)}: " for name in value] if text[0] == "{" else [""] * len(value)
    inner = ",\n".join(
        f"{indent} {name}{_rows(entry, indent + ' ')}"
        for name, entry in zip(names, entries, strict=True)
    )
    return f"{text[0]}\n{inner}\n{indent}{text[-1]}"


def _as_objects(value):
    """Samples and estimates as objects, at any depth."""
    if isinstance(value, Sample):
        return asdict(value)
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [_as_objects(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _as_objects(item) for key, item in value.items()}
    return value
