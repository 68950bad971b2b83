"""The Metal kernels on a machine without Metal: all of them run, and no add is lost.

    python benchmarks/metal_shim.py            two to four minutes
    python benchmarks/metal_shim.py --quick    a tenth of the adds; about one minute
    python benchmarks/metal_shim.py --tests    and the test suite of metal/, with its duration

Everything here is emulated: the shim compiles the kernels' own Metal source for this CPU. Its
elements per second say how fast tests run and nothing about a Mac. Targets: issue "The Apple path".
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from harness.claims import Findings, flags, measured
from harness.machine import ROOT, smallest

from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.host.translate import CONSUMERS
from mlxhog.metal.kernel import Kernel, Launch
from mlxhog.metal.kernels.adds import racy_axpy
from mlxhog.metal.registry import KERNELS

sys.path.insert(0, str(ROOT))  # the launches that count are those of the tests
from tests.metal.kernels import test_lost_adds as counting  # noqa: E402

CHAOS, THREADS = 11, 4
ELEMENTS = 20_000
MOST_FIRST_S, MOST_CACHED_S = 5, 1
TEST_LIMIT_S = 300


@dataclass(frozen=True)
class Started:
    """One kernel instance on its way from source to results."""

    consumer: str
    kernel: str
    instance: str
    first_s: float
    cached_s: float
    elements_per_s: float


def instances() -> list[tuple[Kernel, str]]:
    """Every kernel in each form that is dispatched; with `--tiny` the first one only."""
    every = [(k, instance) for k in KERNELS.values() for instance in k.instances or ("",)]
    return smallest(every[:1], every)


def seconds(engine: HostEngine, launch: Launch) -> float:
    began = time.perf_counter()
    engine.run(launch)
    return time.perf_counter() - began


def start_all(cache: Path) -> tuple[list[Started], set[tuple[str, str, str]]]:
    """Run every instance for both consumers: from nothing, from the cache, and once more."""
    times, ran = [], set()
    for consumer in CONSUMERS:
        cold = HostEngine(consumer, cache=cache)
        for kernel, instance in instances():
            launch = kernel.sample(np.random.default_rng(0), ELEMENTS)
            launch = replace(launch, instance=instance)
            first = seconds(cold, launch)
            cached = seconds(HostEngine(consumer, cache=cache), launch)
            again = min(seconds(cold, launch) for _ in range(3))
            rate = float(np.prod(launch.grid, dtype=np.int64)) / again
            times.append(Started(consumer, kernel.name, instance, first, cached, rate))
        ran |= cold.ran
    return times, ran


def count_lost(name: str, cache: Path, share: int) -> tuple[int, int]:
    """Adds lost and made by one of the tests' cases, on four threads under chaos."""
    case = counting.CASES[name]()
    times = max(1, case.times // share)
    launch = counting.repeated(case.launch, times)
    HostEngine("mlx", chaos=CHAOS, threads=THREADS, cache=cache).run(launch)
    lost = added = 0
    for array in case.counted:
        numbers = counting.numbers(array, launch.instance).astype(np.float64)
        lost += int(np.abs(times - numbers).sum())
        added += times * array.size
    return lost, added


def count_lost_by_racy(cache: Path, share: int) -> tuple[int, int]:
    """The same for the add of a naive program, which has to lose some."""
    arena, n = np.zeros(counting.N, np.float32), counting.N
    launch = racy_axpy(arena, np.ones(n, np.float32), scale=1.0, offset=0)
    times = counting.ADDS // n // share
    launch = counting.repeated(launch, times)
    HostEngine("mlx", chaos=CHAOS, threads=THREADS, cache=cache).run(launch)
    return times * n - int(arena.sum(dtype=np.float64)), times * n


def run_tests() -> tuple[float, bool]:
    """Seconds that the tests of metal/ take, and whether they pass."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/metal"], cwd=ROOT, check=False
    )
    return time.perf_counter() - began, done.returncode == 0


def launches(findings: Findings, cache: Path, share: int) -> None:
    """Start every instance, and count the adds that they lose."""
    started, ran = start_all(cache)
    print(f"{'kernel':28}{'first launch':>14}{'cached':>10}   M elements/s (emulated)")
    for one in started:
        name = f"{one.kernel} {one.instance}".rstrip()
        print(
            f"{name:24}{one.consumer:4}{one.first_s:12.2f} s{one.cached_s:8.3f} s"
            f"{one.elements_per_s / 1e6:12.2f}"
        )
    registered = len(CONSUMERS) * len(instances())
    print(f"{len(ran)} of {registered} instances ran ({' and '.join(CONSUMERS)})")
    findings.exact("% of kernel instances run", 100 * len(ran) / registered, 100)
    late = sum(one.first_s > MOST_FIRST_S for one in started)
    name = f"instances whose first launch, from source, takes more than {MOST_FIRST_S} s"
    findings.exact(name, late, 0, n=len(started), timing=True)
    late = sum(one.cached_s > MOST_CACHED_S for one in started)
    name = f"instances whose first launch, from the cache, takes more than {MOST_CACHED_S} s"
    findings.exact(name, late, 0, n=len(started), timing=True)
    for name in list(counting.CASES)[: smallest(1, None)]:
        lost, added = count_lost(name, cache, share)
        print(f"{name:28}{lost:8} of {added:,} adds lost")
        findings.exact(f"adds lost of {added} ({name})", lost, 0)
    lost, added = count_lost_by_racy(cache, share)
    print(f"{'racy_axpy':28}{lost:8,} of {added:,} adds lost, as it must")
    findings.at_least(f"adds lost of {added} (racy_axpy)", lost, 1, timing=False)
    findings.results["racy_lost_share"] = lost / added
    findings.results["instances"] = [
        {
            "name": one.kernel,
            "instance": one.instance,
            "consumer": one.consumer,
            "first_s": round(one.first_s, 3),
            "cached_s": round(one.cached_s, 4),
            "m_elements_per_s_emulated": round(one.elements_per_s / 1e6, 3),
        }
        for one in started
    ]


def main() -> int:
    """Run and count; end with one JSON line."""
    parser = flags(__doc__, quick="a tenth of the adds")
    parser.add_argument("--tests", action="store_true", help="run and time tests/metal as well")
    return measured("metal_shim", parser.parse_args(), measure, packages=("mlx",))


def measure(findings: Findings, chosen: Namespace) -> None:
    """Run and count."""
    findings.results |= {"emulated": True, "chaos": CHAOS, "threads": THREADS}
    with tempfile.TemporaryDirectory() as folder:
        launches(findings, Path(folder), smallest(1000, 10 if chosen.quick else 1))
    if chosen.tests:
        took, passed = run_tests()
        findings.exact("tests/metal pass", float(passed), 1)
        findings.at_most("seconds of tests/metal", took, TEST_LIMIT_S)
        findings.results["tests_s"] = took


if __name__ == "__main__":
    raise SystemExit(main())
