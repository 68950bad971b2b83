"""The frame of every benchmark: machine, load, claims and exit code.

A script measures, lists `Claim`s, and ends with `raise SystemExit(finish(...))`: a table, then one
JSON line; exit code 0 (met), 1 (missed) or 3 (not measurable on a machine that others keep busy, or
not to be told from so few repeats).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MET, MISSED, NOT_MEASURABLE, UNTOLD = "met", "missed", "not_measurable", "cannot_be_told"
EXIT_CODES = {MET: 0, MISSED: 1, NOT_MEASURABLE: 3, UNTOLD: 3}
BUSY_SHARE = 0.1  # of one core, used by others: more than that and timings say little


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


@dataclass
class Findings:
    """Claims, and further numbers for the JSON line."""

    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Claim that a timing or a ratio of timings is at least so good."""
        self.claims.append(Claim(name, value, ">=", limit))

    def at_most(self, name: str, value: float, limit: float, *, timing: bool = True) -> None:
        """Claim a number that should be small; `timing=False` where other load cannot spoil it."""
        self.claims.append(Claim(name, value, "<=", limit, timing))

    def exact(self, name: str, value: float, expected: float) -> None:
        """Claim a number that holds on any machine."""
        self.claims.append(Claim(name, value, "==", expected, timing=False))


# -- the machine ----------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory and system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(cores()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu_model() -> str:
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def cores() -> list[int]:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(core: int) -> None:
    """Keep this process on one core, where the system lets us (not macOS)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def unpin(allowed: Sequence[int]) -> None:
    """Let this process run on these cores again."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed)


def versions(*packages: str) -> dict[str, str | None]:
    """Installed versions of Python and of the packages; None where one is missing."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def commit() -> str | None:
    """The checked-out commit, with "+" when files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return ended.stdout.strip() if ended.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


# -- other people's load --------------------------------------------------------------------------


def _busy_seconds() -> float | None:
    """CPU seconds all cores worked or were robbed of by a hypervisor; None if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except FileNotFoundError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class LoadWatch:
    """How much CPU others used while we measured.

    `stop(own_cpu_s)` subtracts what the benchmark's own processes used. Without /proc (macOS) the
    one-minute load average at the start has to do.
    """

    def __init__(self) -> None:
        """Start watching."""
        self.load_average = os.getloadavg()[0]
        self._began, self._busy = time.monotonic(), _busy_seconds()

    def stop(self, own_cpu_s: float) -> float:
        """Cores' worth of CPU that others used meanwhile: 0 quiet, 1 one core."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return self.load_average if self.load_average > 0.3 * len(cores()) else 0.0
        # Both counts advance in ticks of 10 ms, so a short window may be off by a few.
        elapsed = time.monotonic() - self._began
        ticks = 0.01 * (1 + len(cores()))
        return max(0.0, busy - self._busy - own_cpu_s - ticks) / elapsed


def own_cpu_s() -> float:
    """CPU time of this process and of all it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def wait_until_quiet(patience_s: float = 60.0, window_s: float = 2.0) -> float:
    """Wait for a window in which others are quiet; returns their load in the last window."""
    deadline = time.monotonic() + patience_s
    while True:
        before = time.process_time()
        watch = LoadWatch()
        time.sleep(window_s)
        others = watch.stop(time.process_time() - before)
        if others <= BUSY_SHARE or time.monotonic() >= deadline:
            return others


# -- the end --------------------------------------------------------------------------------------


def verdict(claims: Sequence[Claim], *, others_load: float) -> str:
    """Missed if a count is wrong; else not measurable if others spoilt timings; else the worst."""
    if any(claim.ended == MISSED for claim in claims if not claim.timing):
        return MISSED
    if others_load > BUSY_SHARE and any(claim.timing for claim in claims):
        return NOT_MEASURABLE
    ends = {claim.ended for claim in claims}
    return next((ended for ended in (MISSED, UNTOLD) if ended in ends), MET)


def parts_parser(about: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """The flags of a script that measures one or several of its parts, `--quick` or whole."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=list(parts))
    return parser


def finish(
    name: str,
    claims: Sequence[Claim],
    *,
    others_load: float,
    results: dict[str, Any],
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
        wanted = f"wanted {claim.relation} {claim.limit:g}"
        print(f"  {marks[claim.ended]}  {claim.name}: {claim.value:.4g}{within} ({wanted})")
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
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
