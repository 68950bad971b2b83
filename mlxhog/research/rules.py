"""The rules that advise: which strategy suits a workload, and what suits a model that was measured.

Of each topic, the first row of a table that holds is the advice. The facts of `STRATEGY_RULES` are
a `workload.Profile`, those of `TRAINING_RULES` an `analysis.advice.Analysis`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    Sync,
    prediction_of,
    shares_moments,
)
from mlxhog.strategies.sync import BY_SPEED


class Rule(NamedTuple):
    """One row of a table, whose functions take the facts."""

    topic: str  # of the advice, or name of the situation
    holds: Callable[[Any], bool]  # whether the row is for these facts
    answer: Callable[[Any], Any]  # strategies, the best first; or advice and flags of `train`
    because: Callable[[Any], str]  # the reason, with the numbers
    otherwise: str = ""  # a change that leads to another answer


def decide(rules: Sequence[Rule], facts: Any) -> list[Rule]:
    """Return the first row of each topic that holds, in the order of the table."""
    decided = dict[str, Rule]()
    for rule in rules:
        if rule.topic not in decided and rule.holds(facts):
            decided[rule.topic] = rule
    return [*decided.values()]


# -- before a run: which strategy ------------------------------------------------------------------

SATURATED = 1.15
MARGIN = 1.1  # gradients per second, hogwild over sync, from which workers do not wait
LARGE_PERIOD = 32

STRATEGY_RULES = (
    Rule(
        "the CPU is saturated",
        lambda p: p.count == 1 or p.scaling < SATURATED,
        lambda p: (Serial(),),
        lambda p: (
            "there is one worker"
            if p.count == 1
            else f"{p.count} workers compute {p.scaling:.2f} times as much as one (below "
            f"{SATURATED}), and no strategy adds compute; a larger batch may still help"
        ),
        f"more cores, or workers that scale to {SATURATED} times one",
    ),
    Rule(
        "runs must be reproducible",
        lambda p: p.reproducible,
        lambda p: (Sync(), RoundRobin()) if p.gain < 0.5 else (RoundRobin(), Sync()),
        lambda p: (
            "both repeat bit for bit: gradients of sync are never stale, and workers of "
            f"round_robin wait less when synchronous steps cost {p.gain:.0%}"
        ),
        "without --reproducible the rules below apply",
    ),
    Rule(
        "synchronization costs next to nothing",
        lambda p: 1 + p.gain < MARGIN,
        lambda p: (Sync(),),
        lambda p: (
            f"synchronization costs {p.gain:.1%} (slowest {p.straggling:.1%}, barrier and average "
            f"{p.overhead:.1%}), which bounds the gain of any method without barriers"
        ),
        f"workers or a barrier that cost {MARGIN - 1:.0%} or more",
    ),
    Rule(
        "updates seldom overlap",
        lambda p: (p.count - 1) * p.p_conf <= 0.5,
        lambda p: (Hogwild(),),
        lambda p: (
            f"(P - 1) p_conf = {(p.count - 1) * p.p_conf:.2g} is at most 1/2, so asynchrony adds "
            "less noise than sampling does (tau <= n / (2 Dbar)): lock-free, at the same learning "
            "rate"
        ),
        "denser updates",
    ),
    Rule(
        "one worker is persistently slow",
        lambda p: p.straggling > p.overhead and p.slow_worker is not None,
        lambda p: (
            (Hogwild(), AsyncPS(), BY_SPEED)
            if 1 + p.gain_over_speed >= MARGIN
            else (BY_SPEED, Hogwild(), AsyncPS())
        ),
        lambda p: (
            f"worker {p.slow_worker} is persistently slow: synchronization costs "
            f"{p.straggling:.0%} with equal shares, and {p.gain_over_speed:.1%} with "
            f"speed-weighted ones (lock-free from {MARGIN - 1:.0%} on); a bound on staleness would "
            "only make all as slow"
        ),
        "equally fast workers",
    ),
    Rule(
        "stragglers dominate",
        lambda p: p.straggling > p.overhead,
        lambda p: (Hogwild(), AsyncPS(), SSP()),
        lambda p: (
            f"the slowest gradient of a step takes {p.straggling:.0%} more than the mean, more "
            f"than barrier and average ({p.overhead:.0%}), and asynchronous updates do not wait"
        ),
        "less variable gradient times",
    ),
    Rule(
        "averaging dominates, and data are non-IID",
        lambda p: p.heterogeneity > 1 / p.period,
        lambda p: (DiLoCo(), Sync()) if p.adaptive else (Scaffold(), FedProx(), Sync()),
        lambda p: (
            f"zeta^2 / sigma^2 = {p.heterogeneity:.2g} is above 1/H = {1 / p.period:.2g}: local "
            "steps drift farther than gradients are noisy, which control variates correct"
            + (" (not with an adaptive optimizer: shorter periods there)" if p.adaptive else "")
        ),
        "more similar shards, or cheaper averaging",
    ),
    Rule(
        "averaging dominates",
        lambda p: p.period < LARGE_PERIOD,
        lambda p: (DiLoCo(), LocalSGD(), Hogwild()) if p.adaptive else (LocalSGD(), Hogwild()),
        lambda p: (
            f"barrier and average cost {p.overhead:.0%} of a gradient; after {p.period} local "
            "steps averaging takes at most a tenth of the time"
        ),
        "a cheaper barrier",
    ),
    Rule(
        "averaging is very expensive",
        lambda p: True,
        lambda p: (DiLoCo(), LocalSGD(), Hogwild(), Sync()),
        lambda p: (
            f"barrier and average take {p.overhead:.3g} gradients, so {p.period} local steps lie "
            "between two averages"
        ),
        "faster averaging",
    ),
)
"""By the facts of a `workload.Profile` p."""

# -- after a measurement: how to train -------------------------------------------------------------

OFTEN = 0.5  # share of parameters, or of pairs of updates, above which conflict is common
MISLEADING = 0.5  # cosine of a stale and a fresh gradient below which the stale one mostly misleads
FRESH = 0.9  # cosine above which a stale gradient is nearly as good as a fresh one


def verdict(f: Any) -> str:
    """Return one line of up to 80 characters: whether lock-free training is sound."""
    if f.staleness.mean == 0:
        return "Yes: no gradient was stale."
    if f.allowed >= f.staleness.largest:
        return (
            f"Yes: updates seldom overlap; theory allows a staleness of {f.allowed:.3g}, and "
            f"{f.staleness.largest:g} is the largest."
        )
    if f.stale is None:
        return f"Not by theory: updates overlap in {f.dense_share:.0%} of the parameters."
    words = "Doubtful: stale gradients mislead"
    if f.stale.cosine >= FRESH:
        words = "Yes in practice: stale gradients stay good"
    elif f.stale.cosine >= MISLEADING:
        words = "With care: stale gradients lose some of their value"
    return f"{words} (cosine {f.stale.cosine:.2f}); no theorem covers it."


def _lost(f: Any) -> str:
    seen = f.observed or {"lost_update_rate": None}
    if seen["lost_update_rate"] is None:
        return "the share of lost increments was not measured"
    return (
        f"{seen['lost_update_rate']:.2g} of all increments were lost in the {seen['source']} with "
        f"write {seen['write']}"
    )


def _staleness_rule(f: Any) -> str:
    return (
        f"tau <= n / (2 Dbar) allows a staleness of {f.allowed:.3g} in {f.strictest['block']}, and "
        f"{f.staleness.largest:g} is the largest"
    )


def _workers(f: Any) -> tuple[str, str]:
    count = min(f.cores, 1 + int(min(f.allowed, f.cores)))
    return f"up to {count}", f"--workers {count}"


def _weight_prediction(f: Any) -> tuple[str, str]:
    if (kind := prediction_of(f.config)) != "none":
        return f"keep predict={kind}", ""
    kind = "last" if shares_moments(f.config) else "own"
    return f"use predict={kind}", f"--predict {kind}"


def _start(f: Any) -> tuple[str, str]:
    own = f.lock_free
    if own is None or not (own.writes_whole_steps and own.is_lock_free):
        return "a longer warmup, as the other options leave no synchronous start", ""
    return (
        "train the first part synchronously",
        f"--async-after {0.1 if f.stale_cosine < MISLEADING else 0.05}",
    )


def _measured_cosine(f: Any) -> str:
    return (
        f"a batch's gradient has a cosine of {f.stale.cosine:.2f} with its own {f.stale.delay} "
        f"updates later, at {'this checkpoint' if f.trained else 'the initial values'}"
    )


TRAINING_RULES = (
    Rule(
        "write",
        lambda f: True,
        lambda f: (
            "apply updates losslessly (stripe locks), as write=auto does on CPUs",
            "--write lossless" if f.write == "racy" else "",
        ),
        lambda f: f"{_lost(f)}, and no theorem here covers lost ones",
    ),
    Rule(
        "workers",
        lambda f: f.allowed < 1,
        lambda f: (
            f"at most one per core ({f.cores} here), and compare their loss with one worker's",
            "",
        ),
        lambda f: f"sparsity does not justify a second worker: {_staleness_rule(f)}",
    ),
    Rule("workers", lambda f: True, _workers, _staleness_rule),
    Rule(
        "weight prediction",
        lambda f: f.lock_free is not None,
        _weight_prediction,
        lambda f: (
            f"a gradient is {f.staleness.mean:.2g} updates stale on average when it is applied, "
            "which weight prediction partly compensates"
        ),
    ),
    Rule(
        "synchronous start",
        lambda f: f.stale_cosine is not None and f.stale_cosine >= FRESH,
        lambda f: ("not needed: stale gradients are good here", ""),
        _measured_cosine,
    ),
    Rule(
        "freshness",
        lambda f: f.stale_cosine is not None and f.stale_cosine < FRESH and f.trained,
        lambda f: ("fewer workers, or a smaller lr, would make more of each gradient", ""),
        _measured_cosine,
    ),
    Rule(
        "synchronous start",
        lambda f: f.stale_cosine is not None and not f.trained,
        _start,
        _measured_cosine,
    ),
    Rule(
        "disjoint blocks",
        lambda f: f.dense_share > OFTEN and getattr(f.config.strategy, "blocks", "") != "disjoint",
        lambda f: (
            "may help against conflicts, but not against stale gradients",
            "--blocks disjoint",
        ),
        lambda f: (
            f"updates overlap in {f.dense_share:.0%} of the parameters; workers with blocks of "
            "their own never write the same element at once, and write less in a step"
        ),
    ),
)
"""By the facts of an `analysis.advice.Analysis` f; the most consequential topics come first."""
