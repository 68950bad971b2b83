"""The workload that advice is for, the strategies for it, and a prediction of each."""

import math
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.research.rules import STRATEGY_RULES, Rule, decide
from mlxhog.research.simulator import simulate
from mlxhog.research.simulator import strategies as simulated
from mlxhog.research.simulator.machine import SimulatedStrategy, Worker
from mlxhog.strategies import (
    SSP,
    AsyncPS,
    DiLoCo,
    FedProx,
    Hogwild,
    LocalSGD,
    RoundRobin,
    Scaffold,
    Serial,
    Strategy,
    Sync,
)
from mlxhog.strategies.averaging import Averaged
from mlxhog.strategies.sync import BY_SPEED
from mlxhog.training.plan import strategy_rule

ROUNDS = 4000  # simulated steps for the mean of the slowest gradient
LASTING = 1.5
"""Mean time of the slowest worker over the median of the others above which it is a slow worker."""

SIMULATED = 3000  # gradients of a prediction
MERGE_SHARE = 0.1  # largest share of the time that merges of local steps may take
MIN_PERIOD, MAX_PERIOD = 4, 512
LOCAL_COST = 0.05
"""Share of the steps that each local step beyond the first costs: of ten, each took 0.046 (0.027 to
0.064, n 12) more steps (`python benchmarks/advisor.py --constants`)."""

STALENESS_COST = 0.01
"""Share of the samples that a mean staleness of one costs if every update overlaps every other,
beyond the cost of the larger batch: 0.00 (-0.04 to 0.03, n 3) for each unit (the same command)."""

CANDIDATES: tuple[Strategy, ...] = (
    Serial(), Sync(), BY_SPEED, Hogwild(), AsyncPS(), SSP(), RoundRobin(), LocalSGD(), Scaffold(),
    FedProx(), DiLoCo(),
)  # fmt: skip
"""Strategies to choose among; the profile gives local ones their number of local steps."""


def rounds_of(workers: Sequence[Worker], seed: int) -> NDArray[np.float64]:
    """Draw the compute times of each worker in many synchronous steps, (P, ROUNDS)."""
    rng, rows = np.random.default_rng(seed), []
    for worker in workers:
        times = worker.compute.successive(rng)
        rows.append([next(times) for _ in range(ROUNDS)])
    return np.array(rows)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Properties of a workload on a machine that strategies depend on."""

    workers: Sequence[Worker]  # costs of each worker's step, while all of them work
    alone: Worker  # costs of a worker's step that has the machine to itself
    sync_s: float  # seconds of a barrier and an average, beyond the slowest gradient (T_s)
    p_conf: float = 1.0  # probability that two updates share an element, weighted by parameters
    density: float = 1.0  # share of the elements that an update touches
    noise_scale: float | None = None  # sequences beyond which a larger batch hardly helps
    batch: int = 1  # sequences in a gradient
    adaptive: bool = False  # whether the optimizer is an adaptive one
    reproducible: bool = False  # whether the strategy has to repeat bit for bit
    heterogeneity: float = 0.0  # zeta^2 / sigma^2, as of the option; 0 if all have the same data
    backend: str = ""  # of a worker that trains alone; "" without a training
    seed: int = field(default=0, repr=False)

    @property
    def count(self) -> int:
        """P, the number of workers."""
        return len(self.workers)

    @cached_property
    def rounds(self) -> NDArray[np.float64]:
        """As of `rounds_of`."""
        return rounds_of(self.workers, self.seed)

    @property
    def mean_s(self) -> float:
        """E[X]: mean time of a gradient; all workers together compute P gradients in it."""
        return self.count / sum(1 / worker.compute.mean_s for worker in self.workers)

    @cached_property
    def slowest_s(self) -> float:
        """E[max]: mean time of the slowest gradient of a synchronous step."""
        return float(self.rounds.max(axis=0).mean())

    @property
    def straggling(self) -> float:
        """E[max] / E[X] - 1: cost of the wait for the slowest, in gradients."""
        return self.slowest_s / self.mean_s - 1

    @property
    def overhead(self) -> float:
        """T_s / E[X]."""
        return self.sync_s / self.mean_s

    @property
    def gain(self) -> float:
        """G: the most that any method without barriers can gain over sync, as a share."""
        return self.straggling + self.overhead

    @property
    def gain_over_speed(self) -> float:
        """Gain over speed-weighted sync, as `--strategy auto` computes it, with its overhead."""
        return strategy_rule.gain(self.rounds.tolist(), self.batch) - 1 + self.overhead

    @property
    def scaling(self) -> float:
        """Gradients per second of all workers together over those of one alone."""
        return sum(1 / worker.step_s for worker in self.workers) * self.alone.step_s

    @property
    def slow_worker(self) -> int | None:
        """The rank of a worker that is always slow; None without one."""
        means = [worker.compute.mean_s for worker in self.workers]
        rank = int(np.argmax(means))
        others = np.delete(means, rank)
        slow = others.size > 0 and means[rank] > LASTING * float(np.median(others))
        return rank if slow else None

    @property
    def period(self) -> int:
        """H: local steps after which a merge takes no more than `MERGE_SHARE` of the time.

        At least `MIN_PERIOD`; at most `MAX_PERIOD`, even if a merge takes more then.
        """
        steps = self.overhead * (1 - MERGE_SHARE) / MERGE_SHARE
        return min(MAX_PERIOD, max(MIN_PERIOD, math.ceil(steps - 1e-9)))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, for --json."""
        same = (
            "mean_s", "slowest_s", "sync_s", "gain", "scaling", "p_conf", "density", "noise_scale",
            "heterogeneity",
        )  # fmt: skip
        return {name: getattr(self, name) for name in same} | {
            "workers": [
                {
                    "name": worker.name,
                    "mean_s": worker.compute.mean_s,
                    "cv": float(times.std() / times.mean()),
                    "min_s": float(times.min()),
                    "p95_s": float(np.quantile(times, 0.95)),
                    "p99_s": float(np.quantile(times, 0.99)),
                    **{name: getattr(worker, name) for name in ("read_s", "apply_s", "other_s")},
                }
                for worker, times in zip(self.workers, self.rounds, strict=True)
            ],
            "alone_step_s": self.alone.step_s,
        }


# -- arms: strategies of train, each with its simulation -------------------------------------------


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    strategy: Strategy  # with its hyperparameters
    simulated: SimulatedStrategy  # of the strategy in the simulator
    workers: str = ""  # as --workers takes them; "" for those of the run

    @property
    def name(self) -> str:
        """For people."""
        return str(self.strategy) if self.strategy == BY_SPEED else self.strategy.name

    @property
    def repeats(self) -> bool:
        """Whether reruns are equal bit for bit; measured speeds never are."""
        return self.strategy.repeats and self.strategy != BY_SPEED

    @property
    def family(self) -> str:
        """How its workers synchronize: serial, synchronous, asynchronous or local."""
        if self.strategy.one_process:
            return "serial"
        if self.strategy.copies:
            return "local"
        return "synchronous" if self.strategy.averages else "asynchronous"

    @property
    def flags(self) -> str:
        """Flags of `mlxhog train`, quoted for a shell."""
        workers = f" --workers {self.workers}" if self.workers else ""
        return f"--strategy {shlex.quote(str(self.strategy))}{workers}"


def arms(profile: Profile, strategies: Collection[Strategy] = CANDIDATES) -> dict[Strategy, Arm]:
    """Return the arm of each of these strategies; reproducible workloads have those that repeat."""
    worker = profile.workers[0]
    shares = (profile.count + 1) / (2 * profile.count) + 1
    own_s = shares * worker.read_s + worker.apply_s / profile.count
    barrier_s = max(0.0, profile.sync_s - own_s)
    period, known = profile.period, dict[Strategy, Arm]()
    for kind in strategies:
        strategy = replace(kind, average_every=period) if isinstance(kind, Averaged) else kind
        workers = profile.backend if strategy.one_process else ""
        arm = Arm(strategy, _simulated(strategy, barrier_s), workers)
        if arm.repeats or not profile.reproducible:
            known[kind] = arm
    return known


def _simulated(strategy: Strategy, barrier_s: float) -> SimulatedStrategy:
    """Simulate a strategy; a barrier takes some seconds beyond the workers' own copies."""
    match strategy:
        case Sync():
            return simulated.SimulatedSync(round_s=barrier_s, by_speed=strategy == BY_SPEED)
        case SSP():
            return simulated.SimulatedSSP(strategy.slack)
        case AsyncPS():
            return simulated.ParameterServer()
        case RoundRobin():
            return simulated.SimulatedRoundRobin()
        case Averaged():
            return simulated.OuterLoop(strategy.local_steps, round_s=barrier_s)
    return simulated.SimulatedHogwild()


# -- a prediction, and the choice ------------------------------------------------------------------


class Recommendation(NamedTuple):
    """The choice of the rules, and the predictions."""

    first: Arm  # the rules' choice
    second: Arm | None  # the best prediction among arms of another family, if there is one
    rule: Rule  # that decided
    expected: list[dict[str, Any]]  # predictions of every arm, soonest first, as of `predict`


def recommend(profile: Profile, strategies: Collection[Strategy] = CANDIDATES) -> Recommendation:
    """Predict every arm, and apply the table.

    Strategies are serial, sync and hogwild, and others of `CANDIDATES`.
    """
    known = arms(profile, strategies)
    expected = predict(profile, known.values())
    rule = decide(STRATEGY_RULES, profile)[0]
    first = next(known[one] for one in rule.answer(profile) if one in known)
    second = next((arm for arm in expected if arm.family != first.family), None)
    return Recommendation(first, second, rule, [*expected.values()])


def predict(profile: Profile, known: Iterable[Arm]) -> dict[Arm, dict[str, Any]]:
    """Predict arms; returns what is expected of each, the soonest first.

    `idle` is the share of time in which workers wait; `samples` to a loss are over those of one
    worker alone, a guess before a trial, and `time` to that loss over that of sync.
    """
    expected: dict[Arm, dict[str, Any]] = {}
    for arm in known:
        workers = [profile.alone] if arm.strategy.one_process else profile.workers
        updates = max(100, SIMULATED // (len(workers) if arm.strategy.averages else 1))
        prediction = simulate(workers, arm.simulated, updates=updates, seed=profile.seed)
        samples = samples_needed(profile, arm.strategy)
        expected[arm] = {
            "name": arm.name,
            "flags": arm.flags,
            "gradients_per_s": prediction.gradients_per_s,
            "staleness": prediction.staleness.mean,
            "idle": prediction.waiting_share,
            "samples": samples,
            "time": samples / prediction.gradients_per_s,
        }
    sync_time = next(row["time"] for arm, row in expected.items() if arm.strategy == Sync())
    for row in expected.values():
        row["time"] /= sync_time
    return dict(sorted(expected.items(), key=lambda one: one[1]["time"]))


def samples_needed(profile: Profile, strategy: Strategy) -> float:
    """Guess the samples to a loss, over those of one worker alone, before a trial.

    Gradients in flight together count as one larger batch, 1 + B / B_noise (McCandlish et al. 2018,
    arXiv:1812.06162). Stale gradients cost `STALENESS_COST` if updates overlap, and local steps
    `LOCAL_COST` each, more if data differ.
    """
    if strategy.one_process:
        return 1.0
    larger = 1.0
    if profile.noise_scale is not None:
        ratio = profile.batch / max(1e-9, profile.noise_scale)
        larger = (1 + profile.count * ratio) / (1 + ratio)
    stale = STALENESS_COST * (strategy.steppers(profile.count) - 1) * profile.p_conf
    drift = 0.0 if isinstance(strategy, Scaffold) else profile.heterogeneity
    steps = strategy.local_steps if isinstance(strategy, Averaged) else 1
    return larger * (1 + stale) * (1 + (LOCAL_COST + drift) * (steps - 1))
