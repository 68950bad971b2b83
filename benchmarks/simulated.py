"""The simulator against closed forms, and gates that must not stop a run: 10,000 schedules.

    python benchmarks/simulated.py           minutes
    python benchmarks/simulated.py --quick   500 schedules

Also the straggler figure of document 002: times 1 + Exp(0.5), n to 10,000, in simulated rounds and
by order statistics, E[max] = 1 + 2 H_n; 003's "seven times" is the same without the constant part.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from harness.claims import Findings, flags, measured
from harness.machine import smallest

from mlxhog.theory.simulator import Deadlock, Event, Simulation, simulate
from mlxhog.theory.simulator.schemes import SSP, Hogwild, OuterLoop, Scheme, Sync
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import (
    Behaviour,
    Condition,
    Start,
    Worker,
    WorkerContext,
)

STEPS = 12  # of each worker in a random schedule
TAIL = times_of("exponential", 1.0, 2.0)  # 1 + Exp(0.5)
FIGURE = (2, 8, 16, 100, 1000, 10_000)


def main() -> int:
    """Check everything."""
    return measured("simulated", flags(__doc__, quick="500 schedules").parse_args(), measure)


def measure(findings: Findings, chosen: Namespace) -> None:
    """Check everything."""
    closed_forms(findings)
    straggler_figure(findings)
    gates(findings, smallest(10, 500 if chosen.quick else 10_000))


def workers_of(count: int, **costs: float) -> list[Worker]:
    """Equal workers with times 1 + Exp(0.5)."""
    return [Worker(name="w", compute=TAIL, **costs) for _ in range(count)]


def harmonic(n: int) -> float:
    """H_n."""
    return float((1 / np.arange(1, n + 1)).sum())


def closed_forms(findings: Findings) -> None:
    """Mean staleness, the time of a round, the best number of backups, the best period."""
    worst = max(
        abs(simulate(workers, Hogwild(), updates=20_000).staleness.mean / (len(workers) - 1) - 1)
        for workers in (
            workers_of(2),
            workers_of(16),
            [Worker(name="slow", compute=TAIL.scaled(10)), *workers_of(15)],
        )
    )
    findings.at_most("mean staleness over P - 1, largest relative error", worst, 0.02, timing=False)
    apart = max(
        abs(simulate(workers_of(n), Sync(), updates=4000).updates_per_s * (1 + 2 * harmonic(n)) - 1)
        for n in (2, 8, 16)
    )
    findings.at_most("rounds against a + H_P / lambda, error", apart, 0.025, timing=False)
    best = {}
    for n in (4, 8, 16):
        rates = {
            k: simulate(workers_of(n), Sync(backups=n - k), updates=6000, seed=n).gradients_per_s
            for k in range(max(1, n // 2), n + 1)
        }
        expected = {k: k / (1 + 2 * (harmonic(n) - harmonic(n - k))) for k in rates}
        first = max(expected, key=lambda k: expected[k])
        best[n] = {"formula": first, "simulated": max(rates, key=lambda k: rates[k])}
        findings.at_most(
            f"rate of the best k of {n} ({first}) below the largest simulated",
            1 - rates[first] / max(rates.values()), 0.02, timing=False,
        )  # fmt: skip
    findings.results["best_k"] = best
    # (T_c + T_s / H)(1 + b (H - 1)) is least at H = sqrt(T_s (1 - b) / (T_c b)).
    compute, merge, cost = 0.1, 0.05, 0.001
    steady = [Worker(name="w", compute=times_of("constant", compute))] * 4
    periods = range(1, 81)
    prices = [
        (1 + cost * (h - 1))
        / simulate(steady, OuterLoop(h, round_s=merge), updates=40 * h).updates_per_s
        for h in periods
    ]
    formula = (merge * (1 - cost) / (compute * cost)) ** 0.5
    simulated = periods[int(np.argmin(prices))]
    findings.results["best_period"] = {"formula": formula, "simulated": simulated}
    price = prices[round(formula) - 1] / min(prices)
    findings.at_most("price at H* over the least simulated", price, 1.01, timing=False)


def straggler_figure(findings: Findings) -> None:
    """Slowest over mean and over fastest of n workers, drawn and by order statistics."""
    rng, rows = np.random.default_rng(0), list[dict[str, Any]]()
    least_s, delay_s = TAIL.numbers
    for n in FIGURE:
        drawn = rng.standard_exponential(n * (200_000 // n + 50))
        rounds = (least_s + delay_s * drawn).reshape(-1, n)
        slowest, fastest = rounds.max(axis=1).mean(), rounds.min(axis=1).mean()
        expected = 1 + 2 * harmonic(n)
        rows.append(
            {
                "n": n,
                "slowest_over_mean": float(slowest / 3),
                "formula": expected / 3,
                "slowest_over_fastest": float(slowest / fastest),
                "exponential": harmonic(n),
            }
        )
        print(
            f"n {n:6}: slowest {slowest / 3:5.2f} times the mean (formula {expected / 3:5.2f}), "
            f"{slowest / fastest:5.2f} times the fastest; purely exponential {harmonic(n):5.2f}",
            flush=True,
        )
        error = abs(slowest / expected - 1)
        findings.at_most(f"order statistics at n = {n}, error", error, 0.03, timing=False)
    findings.results["stragglers"] = rows


Gate = Callable[[WorkerContext], Condition]


def gated(
    workers: Sequence[WorkerContext], may_read: Gate, may_write: Gate, reads: dict[int, int]
) -> list[Start]:
    """Lock-free steps that wait before the read and before the write.

    Args:
        workers: of the simulation.
        may_read: the condition of a worker before it reads.
        may_write: the condition before it writes.
        reads: filled with the version that each worker with a gradient in flight has read.
    """

    def behaviour(worker: WorkerContext) -> Behaviour:
        before_read, before_write = may_read(worker), may_write(worker)
        reads.pop(worker.rank, None)  # its read before it died
        for _ in worker.steps():
            yield before_read
            reads[worker.rank] = worker.look()
            yield worker.exchange()
            yield worker.read()
            yield worker.compute()
            yield worker.add()
            yield before_write
            worker.apply(reads.pop(worker.rank))

    return [partial(behaviour, worker) for worker in workers]


def at_once(worker: WorkerContext) -> Condition:
    """No gate."""
    return lambda: True


@dataclass(frozen=True)
class VersionBound(Scheme):
    """No update is more than `most` updates old when it is added.

    At most `most` + 1 gradients are in flight. A worker may write if all others in flight can still
    write in time, oldest first: v + 1 + j - r_j <= most for the j-th oldest read r_j.

    Attributes:
        most: largest staleness.
    """

    strategy: ClassVar[str] = "version_bound"
    most: int

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker."""
        reads: dict[int, int] = {}

        def may_read(worker: WorkerContext) -> Condition:
            alive = worker.state.alive
            return lambda: sum(rank in alive for rank in reads) <= self.most

        def may_write(worker: WorkerContext) -> Condition:
            state, rank = worker.state, worker.rank

            def holds() -> bool:
                others = sorted(reads[one] for one in reads if one != rank and one in state.alive)
                ahead = (state.version + 1 + j - read for j, read in enumerate(others))
                return max(state.version - reads[rank], *ahead, 0) <= self.most

            return holds

        return gated(workers, may_read, may_write, reads)


@dataclass(frozen=True)
class ObviousBound(Scheme):
    """Write while the oldest other read stays within the bound; equally old reads deadlock."""

    strategy: ClassVar[str] = "version_naive"
    most: int

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker."""
        reads: dict[int, int] = {}

        def may_write(worker: WorkerContext) -> Condition:
            state, rank = worker.state, worker.rank

            def holds() -> bool:
                others = [reads[one] for one in reads if one != rank and one in state.alive]
                oldest = min(others, default=state.version + 1)
                age = max(state.version - reads[rank], state.version + 1 - oldest)
                return age <= self.most

            return holds

        return gated(workers, at_once, may_write, reads)


@dataclass(frozen=True)
class PushGate(Scheme):
    """Document 003's BoundedStalenessServer: wait at the write while the gradient is too old.

    The version grows and the version that was read stays, so a worker that waits never continues.
    """

    strategy: ClassVar[str] = "push_gate"
    most: int

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker."""
        reads: dict[int, int] = {}

        def young(worker: WorkerContext) -> Condition:
            return lambda: worker.state.version - reads[worker.rank] <= self.most

        return gated(workers, at_once, young, reads)


def gates(findings: Findings, count: int) -> None:
    """Random schedules with deaths and returns under each gate."""
    rng, kinds = np.random.default_rng(1), ("ssp", "safe version bound", "naive", "push gate")
    stopped, wide, late = dict.fromkeys(kinds, 0), 0, 0
    for seed in range(count):
        workers, events, slack = random_schedule(rng)
        bound = slack + 1
        clocks, ended = spread(workers, slack, events, seed)
        stopped["ssp"] += not ended
        wide = max(wide, clocks - slack)
        machine, ended = run(workers, VersionBound(bound), events, seed)
        stopped["safe version bound"] += not ended
        late += any(tau > bound for _, tau in machine.state.lateness)
        for kind, scheme in (
            ("naive", ObviousBound(bound)),
            ("push gate", PushGate(1)),
        ):
            stopped[kind] += not run(workers, scheme, (), seed)[1]
    for kind in kinds:
        print(f"{kind:20} stops in {stopped[kind]} of {count} schedules", flush=True)
    findings.exact("ssp: schedules that stop for ever", stopped["ssp"], 0)
    findings.at_most("ssp: largest spread of clocks beyond the slack", wide, 1, timing=False)
    findings.exact("safe version bound: schedules that stop", stopped["safe version bound"], 0)
    findings.exact("safe version bound: schedules beyond the bound", late, 0)
    for kind in ("naive", "push gate"):
        name = f"{kind}: schedules that stop"
        findings.at_least(name, stopped[kind], 1, timing=False)
    findings.results["schedules"] = count
    findings.results["stopped"] = stopped


def random_schedule(rng: np.random.Generator) -> tuple[list[Worker], list[Event], int]:
    """Workers of random speeds, deaths, returns, and a slack."""
    count, slack = int(rng.integers(2, 9)), int(rng.integers(0, 5))
    workers = [
        Worker(
            name="w", compute=times_of("lognormal", float(rng.uniform(0.1, 4)), 0.7), steps=STEPS
        )
        for _ in range(count)
    ]
    events = []
    for rank in range(count - 1):
        if rng.random() < 0.3:
            at_s = float(rng.uniform(1, 15))
            events.append(Event(at_s, rank, joins=False))
            if rng.random() < 0.5:
                events.append(Event(at_s + 3.0, rank, joins=True))
    return workers, events, slack


def run(workers: list[Worker], scheme: Scheme, events: Any, seed: int) -> tuple[Simulation, bool]:
    """Simulate to the end; whether it is reached."""
    machine = Simulation(workers, scheme, seed=seed, events=events)
    try:
        machine.run_until(10**9)
    except Deadlock:
        return machine, False
    return machine, True


def spread(workers: list[Worker], slack: int, events: Any, seed: int) -> tuple[int, bool]:
    """Largest difference between clocks of workers that are there under SSP; whether all finish."""
    machine, widest, version = Simulation(workers, SSP(slack), seed=seed, events=events), 0, -1
    state = machine.state
    try:
        while state.version > version:
            version = state.version
            machine.run_until(version + 1)
            clocks = [state.clocks.get(rank, 0) for rank in state.alive]
            widest = max(widest, max(clocks, default=0) - min(clocks, default=0))
    except Deadlock:
        return widest, False
    return widest, True


if __name__ == "__main__":
    raise SystemExit(main())
