"""Which strategy: the arms, the table of rules that chooses one, and a prediction of each arm."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlxhog.errors import ConfigError
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
from mlxhog.theory.advisor.profile import Profile
from mlxhog.theory.rules import Rule
from mlxhog.theory.simulator import schemes, simulate
from mlxhog.theory.simulator.machine import Scheme
from mlxhog.training.choose_strategy import MARGIN

# -- arms: strategies of train, each with its scheme in the simulator ------------------------------

LEAST_PERIOD, MOST_PERIOD = 4, 512
LOCAL_COST = 0.05
"""Share of the steps that each local step beyond the first costs: of ten, each took 0.046 (0.027 to
0.064, n 12) more steps (`python benchmarks/advisor.py --constants`)."""

STALENESS_COST = 0.01
"""Share of the samples that a mean staleness of one costs if every update meets every other, beyond
the cost of the larger batch: Muon in turn beside averaged gradients of as many workers, 0.00 (-0.04
to 0.03, n 3) for each unit (the same command), so it cannot be told from 0."""

CANDIDATES: tuple[Strategy, ...] = (
    Serial(), Sync(), BY_SPEED, Hogwild(), AsyncPS(), SSP(), RoundRobin(), LocalSGD(), Scaffold(),
    FedProx(), DiLoCo(),
)  # fmt: skip
"""Strategies to choose among; the profile gives local ones their number of local steps."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        strategy: with its numbers.
        scheme: of the strategy in the simulator.
        workers: as --workers takes them; "" for those of the run.
    """

    strategy: Strategy
    scheme: Scheme
    workers: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return self.strategy.name + " by speed" * (self.strategy == BY_SPEED)

    @property
    def repeats(self) -> bool:
        """Whether reruns are equal bit for bit; measured speeds never are."""
        return self.strategy.repeats and self.strategy != BY_SPEED

    @property
    def period(self) -> int:
        """Local steps between two merges; 1 without merges."""
        return self.strategy.local_steps if isinstance(self.strategy, Averaged) else 1

    @property
    def family(self) -> str:
        """How its workers meet: serial, rounds, asynchronous or local."""
        if self.strategy.one_process:
            return "serial"
        if self.strategy.copies:
            return "local"
        return "rounds" if self.strategy.averages else "asynchronous"

    @property
    def flags(self) -> str:
        """Flags of `mlxhog train`, quoted for a shell."""
        workers = f" --workers {self.workers}" if self.workers else ""
        return f"--strategy {shlex.quote(str(self.strategy))}{workers}"


def arms(profile: Profile, strategies: Collection[Strategy] = CANDIDATES) -> dict[Strategy, Arm]:
    """Return the arm of each of these strategies."""
    worker = profile.workers[0]
    shares = (profile.count + 1) / (2 * profile.count) + 1
    own_s = shares * worker.read_s + worker.apply_s / profile.count
    barrier_s = max(0.0, profile.sync_s - own_s)
    period = min(MOST_PERIOD, max(LEAST_PERIOD, profile.period()))
    known = {}
    for kind in strategies:
        strategy = kind.meeting_every(period) if isinstance(kind, Averaged) else kind
        workers = profile.backend if strategy.one_process else ""
        known[kind] = Arm(strategy, _scheme(strategy, barrier_s), workers)
    return known


def _scheme(strategy: Strategy, barrier_s: float) -> Scheme:
    """Simulate a strategy; a barrier takes some seconds beyond the workers' own copies."""
    match strategy:
        case Sync():
            return schemes.Sync(round_s=barrier_s, by_speed=strategy == BY_SPEED)
        case SSP():
            return schemes.SSP(strategy.slack)
        case AsyncPS():
            return schemes.ParameterServer()
        case RoundRobin():
            return schemes.RoundRobin()
        case Averaged():
            return schemes.OuterLoop(strategy.local_steps, round_s=barrier_s)
    return schemes.Hogwild()


# -- rules -----------------------------------------------------------------------------------------

SATURATED = 1.15
LARGE_PERIOD = 32
SIMULATED = 3000
"""Gradients of a prediction."""


def _dominant_sync(p: Profile) -> bool:
    return p.overhead >= p.straggling


RULES: tuple[Rule[Profile, Sequence[Strategy]], ...] = (
    Rule(
        "the machine is full",
        lambda p: p.count == 1 or p.scaling < SATURATED,
        lambda p: (Serial(),),
        lambda p: (
            "there is one worker"
            if p.count == 1
            else f"{p.count} workers compute {p.scaling:.2f} times as much as one (below "
            f"{SATURATED}), and no strategy creates compute; a larger batch may still help"
        ),
        f"more cores, or workers that scale to {SATURATED} times one",
    ),
    Rule(
        "runs must repeat",
        lambda p: p.reproducible,
        lambda p: (Sync(), RoundRobin()) if p.gain < 0.5 else (RoundRobin(), Sync()),
        lambda p: (
            "both repeat bit for bit: gradients of sync are never late, and workers of round_robin "
            f"wait less when rounds cost {p.gain:.0%}"
        ),
        "without --reproducible the rules below apply",
    ),
    Rule(
        "rounds cost next to nothing",
        lambda p: 1 + p.gain < MARGIN,
        lambda p: (Sync(),),
        lambda p: (
            f"rounds cost {p.gain:.1%} (slowest {p.straggling:.1%}, barrier and average "
            f"{p.overhead:.1%}), which bounds the gain of any method without barriers"
        ),
        f"workers or a barrier that cost {MARGIN - 1:.0%} or more",
    ),
    Rule(
        "updates seldom meet",
        lambda p: (p.count - 1) * p.p_conf <= 0.5,
        lambda p: (Hogwild(),),
        lambda p: (
            f"(P - 1) p_conf = {(p.count - 1) * p.p_conf:.2g} is at most 1/2, so asynchrony adds "
            "less noise than sampling does (tau <= n / (2 Dbar)): lock-free, at the same step size"
        ),
        "denser updates",
    ),
    Rule(
        "one worker is slow for good",
        lambda p: not _dominant_sync(p) and p.slow_worker is not None,
        lambda p: (Hogwild(), AsyncPS(), BY_SPEED)
        if 1 + p.gain_over_speed >= MARGIN
        else (BY_SPEED, Hogwild(), AsyncPS()),
        lambda p: (
            f"worker {p.slow_worker} is slow for good: rounds cost {p.straggling:.0%} with equal "
            f"shares, and {p.gain_over_speed:.1%} with shares by speed (lock-free from "
            f"{MARGIN - 1:.0%} on); a bound on staleness would only make all as slow"
        ),
        "workers of one speed",
    ),
    Rule(
        "stragglers dominate",
        lambda p: not _dominant_sync(p),
        lambda p: (Hogwild(), AsyncPS(), SSP()),
        lambda p: (
            f"the slowest gradient of a round takes {p.straggling:.0%} more than the mean, more "
            f"than barrier and average ({p.overhead:.0%}), and asynchronous updates do not wait"
        ),
        "steadier times of gradients",
    ),
    Rule(
        "merging dominates, and data differ",
        lambda p: p.heterogeneity > 1 / p.period(),
        lambda p: (DiLoCo(), Sync()) if p.adaptive else (Scaffold(), FedProx(), Sync()),
        lambda p: (
            f"zeta^2 / sigma^2 = {p.heterogeneity:.2g} is above 1/H = {1 / p.period():.2g}: local "
            "steps drift farther than gradients are noisy, which control variates correct"
            + (" (not with an adaptive optimizer: shorter periods there)" if p.adaptive else "")
        ),
        "shards that are alike, or a cheaper merge",
    ),
    Rule(
        "merging dominates",
        lambda p: p.period() < LARGE_PERIOD,
        lambda p: (
            (DiLoCo(), LocalSGD(), Hogwild()) if p.adaptive else (LocalSGD(), Hogwild())
        ),
        lambda p: (
            f"barrier and average cost {p.overhead:.0%} of a gradient; after {p.period()} local "
            "steps a merge takes a tenth of the time"
        ),
        "a cheaper barrier",
    ),
    Rule(
        "merging is very expensive",
        lambda p: True,
        lambda p: (DiLoCo(), LocalSGD(), Hogwild(), Sync()),
        lambda p: (
            f"barrier and average take {p.overhead:.3g} gradients, so {p.period()} local steps lie "
            "between two merges"
        ),
        "a faster merge",
    ),
)  # fmt: skip
"""The first row that holds and has an arm decides."""


class Recommendation(NamedTuple):
    """The choice of the rules, and the predictions.

    Attributes:
        first: the rules' choice.
        second: the best prediction among arms of another family; None if there is no such arm.
        rule: name of the rule that decided.
        because: its reason.
        otherwise: a change that leads to another answer.
        expected: predictions of every arm, soonest first, as of `predict`.
    """

    first: Arm
    second: Arm | None
    rule: str
    because: str
    otherwise: str
    expected: list[dict[str, Any]]


def recommend(profile: Profile, strategies: Collection[Strategy] = CANDIDATES) -> Recommendation:
    """Predict every arm, and apply the table.

    Args:
        profile: the workload.
        strategies: to choose among, some of `CANDIDATES`.

    Raises:
        ConfigError: no rule fits with these strategies.
    """
    known = arms(profile, strategies)
    if profile.reproducible:
        known = {kind: arm for kind, arm in known.items() if arm.repeats}
    expected = predict(profile, known.values())
    for rule in (one for one in RULES if one.holds(profile)):
        for first in (known[one] for one in rule.answer(profile) if one in known):
            second = next((arm for arm in expected if arm.family != first.family), None)
            because, rows = rule.because(profile), [*expected.values()]
            return Recommendation(first, second, rule.topic, because, rule.otherwise, rows)
    raise ConfigError(
        f"no rule fits with the strategies {', '.join(map(str, strategies))}; wanted serial, sync "
        "or hogwild among them"
    )


def predict(profile: Profile, known: Iterable[Arm]) -> dict[Arm, dict[str, Any]]:
    """Predict arms; returns what is expected of each, the soonest first.

    It has `name` and `flags`; `gradients_per_s`, mean `staleness`, and the share of time in which
    workers are `idle`; `samples` to a loss, over those of one worker alone, a guess before a trial;
    and `time` to that loss, over that of sync.
    """
    expected: dict[Arm, dict[str, Any]] = {}
    for arm in known:
        workers = [profile.alone] if arm.strategy.one_process else profile.workers
        updates = max(100, SIMULATED // (len(workers) if arm.strategy.averages else 1))
        prediction = simulate(workers, arm.scheme, updates=updates, seed=profile.seed)
        samples = samples_needed(profile, arm)
        expected[arm] = {
            "name": arm.name,
            "flags": arm.flags,
            "gradients_per_s": prediction.gradients_per_s,
            "staleness": prediction.staleness.mean,
            "idle": prediction.waiting_share,
            "samples": samples,
            "time": samples / prediction.gradients_per_s,
        }
    rows = [*expected.values()]
    sync = next((row["time"] for arm, row in expected.items() if arm.strategy == Sync()), None)
    unit = sync or rows[0]["time"]
    for row in rows:
        row["time"] /= unit
    return dict(sorted(expected.items(), key=lambda one: one[1]["time"]))


def samples_needed(profile: Profile, arm: Arm) -> float:
    """Guess the samples to a loss, over those of one worker alone, before a trial.

    Gradients in flight together count as one larger batch, 1 + B / B_noise (McCandlish et al. 2018,
    arXiv:1812.06162). Late gradients cost `STALENESS_COST` if updates meet, and local steps
    `LOCAL_COST` each, more if data differ.
    """
    strategy = arm.strategy
    if strategy.one_process:
        return 1.0
    larger = 1.0
    if profile.noise_scale is not None:
        ratio = profile.batch / max(1e-9, profile.noise_scale)
        larger = (1 + profile.count * ratio) / (1 + ratio)
    staleness = strategy.steppers(profile.count) - 1
    late = 1 + STALENESS_COST * staleness * profile.p_conf
    drift = 0.0 if isinstance(strategy, Scaffold) else profile.heterogeneity
    local = 1 + (LOCAL_COST + drift) * (arm.period - 1)
    return larger * late * local
