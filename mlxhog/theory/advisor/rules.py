"""Which strategy: the arms it can be, the table of rules, and what is predicted of every arm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlxhog.errors import ConfigError
from mlxhog.theory.advisor.profile import Profile
from mlxhog.theory.simulator import Prediction, simulate
from mlxhog.theory.simulator.gates import SSP
from mlxhog.theory.simulator.schemes import (
    Hogwild,
    OuterLoop,
    ParameterServer,
    RoundRobin,
    Scheme,
    Sync,
)

# -- arms: strategies of this tree, each with its options and its scheme in the simulator ----------

LEAST_PERIOD, MOST_PERIOD = 4, 512
SSP_SLACK = 3
LOCAL_COST = 0.01
"""Steps that each local step beyond the first costs in all, as a share, before it is measured."""

STALENESS_COST = 0.01
"""Samples that a mean staleness of one costs where every update meets every other, likewise, beyond
the cost of a larger batch, which `samples_needed` counts apart: at staleness 3 Muon in turn takes
1.266 times serial's, averaged gradients of as many workers 1.218 (benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: for people.
        strategy: as --strategy takes it.
        options: further options of train.
        scheme: in the simulator.
        repeats: whether reruns are equal bit for bit.
        lateness: mean staleness of its gradients, in updates.
        period: local steps between merges; 1 for none.
    """

    name: str
    strategy: str
    options: Mapping[str, Any]
    scheme: Scheme
    repeats: bool = False
    lateness: float = 0.0
    period: int = 1

    @property
    def family(self) -> str:
        """How its workers meet: serial, rounds, asynchronous or local."""
        if self.period > 1:
            return "local"
        if self.lateness:
            return "asynchronous"
        return "serial" if self.strategy == "serial" else "rounds"

    @property
    def flags(self) -> str:
        """What to add to `mlxhog train`."""
        words = [f"--{name.replace('_', '-')} {value}" for name, value in self.options.items()]
        return " ".join([f"--strategy {self.strategy}", *words])


def _local(name: str, profile: Profile, round_s: float) -> Arm:
    period = min(MOST_PERIOD, max(LEAST_PERIOD, profile.period()))
    return Arm(
        name,
        name,
        {"average_every": period},
        OuterLoop(period, round_s=round_s, name=name, corrected=name == "scaffold"),
        repeats=True,
        period=period,
    )


_ARMS: Mapping[str, Callable[[Profile, float], Arm]] = {
    "serial": lambda p, s: Arm(
        "serial", "serial", {"workers": p.backend} if p.backend else {}, Hogwild(), repeats=True
    ),
    "sync": lambda p, s: Arm("sync", "sync", {}, Sync(round_s=s), repeats=True),
    "sync by speed": lambda p, s: Arm(
        "sync by speed", "sync", {"sync_shares": "speed"}, Sync(round_s=s, by_speed=True)
    ),
    "hogwild": lambda p, s: Arm("hogwild", "hogwild", {}, Hogwild(), lateness=p.count - 1),
    "async_ps": lambda p, s: Arm(
        "async_ps", "async_ps", {}, ParameterServer(), lateness=p.count - 1
    ),
    "ssp": lambda p, s: Arm(
        "ssp", "ssp", {"slack": SSP_SLACK}, SSP(SSP_SLACK), lateness=p.count - 1
    ),
    "round_robin": lambda p, s: Arm(
        "round_robin", "round_robin", {}, RoundRobin(), repeats=True, lateness=p.count - 1
    ),
    **{name: partial(_local, name) for name in ("local_sgd", "scaffold", "fedprox", "diloco")},
}
"""By name: what makes an arm of a profile and the seconds of a round's barrier."""


def arms(profile: Profile, strategies: Collection[str] | None = None) -> dict[str, Arm]:
    """Every arm, by name.

    Args:
        profile: whose round and period they take.
        strategies: to choose among; None for all that advice knows.
    """
    worker = profile.workers[0]
    shares = (profile.count + 1) / (2 * profile.count) + 1
    own_s = shares * worker.read_s + worker.apply_s / profile.count
    barrier_s = max(0.0, profile.sync_s - own_s)
    known = {name: make(profile, barrier_s) for name, make in _ARMS.items()}
    return {
        name: arm for name, arm in known.items() if strategies is None or arm.strategy in strategies
    }


# -- rules -----------------------------------------------------------------------------------------

SATURATED = 1.15
SMALL_GAIN = 0.10
LARGE_PERIOD = 32
SLOW_LINK_GBIT_S = 1.0
SIMULATED = 3000
"""Gradients of a prediction."""


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        name: of the situation.
        holds: whether a profile is in it.
        choose: the arms for it, best first; the first there is among the arms is taken.
        because: the reason, with the profile's numbers.
        otherwise: what would change the answer.
    """

    name: str
    holds: Callable[[Profile], bool]
    choose: Callable[[Profile], Sequence[str]]
    because: Callable[[Profile], str]
    otherwise: str


def _dominant_sync(p: Profile) -> bool:
    return p.overhead >= p.straggling


RULES = (
    Rule(
        "the machine is full",
        lambda p: p.count == 1 or p.scaling < SATURATED,
        lambda p: ("serial",),
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
        lambda p: ("sync", "round_robin") if p.gain < 0.5 else ("round_robin", "sync"),
        lambda p: (
            "of what repeats bit for bit, sync has gradients that are never late, and round_robin "
            f"waits less where rounds cost {p.gain:.0%}"
        ),
        "without --reproducible the rules below apply",
    ),
    Rule(
        "rounds cost next to nothing",
        lambda p: p.gain < SMALL_GAIN,
        lambda p: ("sync",),
        lambda p: (
            f"rounds cost {p.gain:.1%} (slowest {p.straggling:.1%}, barrier and average "
            f"{p.overhead:.1%}), and that bounds what any method without barriers can gain"
        ),
        f"workers or a barrier that cost {SMALL_GAIN:.0%} or more",
    ),
    Rule(
        "updates seldom meet",
        lambda p: (p.count - 1) * p.p_conf <= 0.5 and p.link_gbit_s is None,
        lambda p: ("hogwild",),
        lambda p: (
            f"(P - 1) p_conf = {(p.count - 1) * p.p_conf:.2g} is at most 1/2, so asynchrony adds "
            "less noise than sampling does (tau <= n / (2 Dbar)): lock-free, at the same step size"
        ),
        "denser updates",
    ),
    Rule(
        "one worker is slow for good",
        lambda p: not _dominant_sync(p) and p.slow_worker is not None,
        lambda p: ("hogwild", "async_ps", "sync by speed"),
        lambda p: (
            f"worker {p.slow_worker} is slow for good and rounds cost {p.straggling:.0%}; a bound "
            "on staleness would only make all as slow, so nobody waits (or shares follow speed)"
        ),
        "workers of one speed",
    ),
    Rule(
        "stragglers dominate",
        lambda p: not _dominant_sync(p),
        lambda p: ("hogwild", "async_ps", "ssp"),
        lambda p: (
            f"the slowest gradient of a round takes {p.straggling:.0%} more than the mean, more "
            f"than barrier and average ({p.overhead:.0%}); updates that nobody waits for avoid it"
        ),
        "steadier times of gradients",
    ),
    Rule(
        "merging dominates, and data differ",
        lambda p: p.heterogeneity > 1 / p.period(),
        lambda p: ("diloco", "sync") if p.adaptive else ("scaffold", "fedprox", "sync"),
        lambda p: (
            f"zeta^2 / sigma^2 = {p.heterogeneity:.2g} is above 1/H = {1 / p.period():.2g}: local "
            "steps drift farther than gradients are noisy, which control variates correct"
            + (" (not with an adaptive optimizer: shorter periods there)" if p.adaptive else "")
        ),
        "shards that are alike, or a cheaper merge",
    ),
    Rule(
        "merging dominates within a machine",
        lambda p: p.link_gbit_s is None and p.period() < LARGE_PERIOD,
        lambda p: ("diloco", "local_sgd", "hogwild") if p.adaptive
        else ("local_sgd", "hogwild"),
        lambda p: (
            f"barrier and average cost {p.overhead:.0%} of a gradient; after {p.period()} local "
            "steps a merge takes a tenth of the time"
        ),
        "a cheaper barrier",
    ),
    Rule(
        "merging is very expensive",
        lambda p: True,
        lambda p: ("diloco", "local_sgd", "hogwild", "sync"),
        lambda p: (
            f"barrier and average take {p.overhead:.3g} gradients, so {p.period()} local steps lie "
            "between two merges"
            + (
                f" (a link of {p.link_gbit_s:g} Gbit/s: send fragments, or sparse ones)"
                if p.link_gbit_s is not None and p.link_gbit_s < SLOW_LINK_GBIT_S
                else ""
            )
        ),
        "a faster link",
    ),
)  # fmt: skip
"""In order: the first that holds and has an arm to choose decides."""


@dataclass(frozen=True)
class Expected:
    """What is predicted of one arm.

    Attributes:
        arm: the way to train.
        prediction: of its speed.
        samples: that it needs, over those of one worker alone; a guess before it is tried.
        time: to a loss, over that of sync; smaller is sooner.
    """

    arm: Arm
    prediction: Prediction
    samples: float
    time: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.arm.name,
            "flags": self.arm.flags,
            "gradients_per_s": self.prediction.gradients_per_s,
            "staleness": self.prediction.staleness.mean,
            "idle": self.prediction.waiting_share,
            "samples": self.samples,
            "time": self.time,
        }


@dataclass(frozen=True)
class Recommendation:
    """What the rules choose, and what was predicted.

    Attributes:
        first: the rules' choice.
        second: the best prediction among arms of another family; None where there is none.
        rule: that decided.
        because: its reason.
        otherwise: what would change the answer.
        expected: every arm, soonest first.
    """

    first: Expected
    second: Expected | None
    rule: str
    because: str
    otherwise: str
    expected: tuple[Expected, ...]


def recommend(profile: Profile, strategies: Collection[str] | None = None) -> Recommendation:
    """Apply the table, and predict every arm.

    Args:
        profile: the workload.
        strategies: to choose among; None for all that advice knows.

    Raises:
        ConfigError: none of these strategies fits.
    """
    known = arms(profile, strategies)
    if profile.reproducible:
        known = {name: arm for name, arm in known.items() if arm.repeats}
    expected = sorted(predict(profile, list(known.values())), key=lambda one: one.time)
    by_name = {one.arm.name: one for one in expected}
    for rule in RULES:
        if not rule.holds(profile):
            continue
        name = next((name for name in rule.choose(profile) if name in by_name), None)
        if name is None:
            continue
        family = by_name[name].arm.family
        others = [one for one in expected if one.arm.family != family]
        return Recommendation(
            first=by_name[name],
            second=others[0] if others else None,
            rule=rule.name,
            because=rule.because(profile),
            otherwise=rule.otherwise,
            expected=tuple(expected),
        )
    raise ConfigError(
        f"no rule fits with the strategies {', '.join(strategies or ())}; wanted serial, sync or "
        "hogwild among them"
    )


def predict(profile: Profile, known: Sequence[Arm]) -> Iterator[Expected]:
    """Predict speed, samples and time of arms."""
    rate = partial(simulate, cores=None, seed=profile.seed)
    times = []
    for arm in known:
        one = [profile.alone] if arm.strategy == "serial" else profile.workers
        together = len(one) if arm.strategy == "sync" else 1
        prediction = rate(one, arm.scheme, updates=max(100, SIMULATED // together))
        samples = samples_needed(profile, arm)
        times.append((arm, prediction, samples, samples / prediction.gradients_per_s))
    sync = next((time for arm, *_, time in times if arm.name == "sync"), times[0][-1])
    for arm, prediction, samples, time in times:
        yield Expected(arm, prediction, samples, time / sync)


def samples_needed(profile: Profile, arm: Arm) -> float:
    """Samples to a loss, over those of one worker alone: what to expect before it is measured.

    Gradients in flight together count as one larger batch, 1 + B / B_noise (McCandlish et al. 2018,
    arXiv:1812.06162). Late gradients cost `STALENESS_COST` where updates meet, and local steps
    `LOCAL_COST` each, more where data differ.
    """
    if arm.strategy == "serial":
        return 1.0
    larger = 1.0
    if profile.noise_scale is not None:
        ratio = profile.batch / max(1e-9, profile.noise_scale)
        larger = (1 + profile.count * ratio) / (1 + ratio)
    late = 1 + STALENESS_COST * arm.lateness * profile.p_conf
    corrected = arm.strategy == "scaffold"
    drift = 0.0 if corrected else profile.heterogeneity
    local = 1 + (LOCAL_COST + drift) * (arm.period - 1)
    return larger * late * local
