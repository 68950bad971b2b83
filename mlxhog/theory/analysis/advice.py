"""Advice for training a model that was measured: rows, each of which names the number behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.strategies import Hogwild
from mlxhog.theory.analysis.conflicts import BlockConflicts
from mlxhog.theory.analysis.sampling import StaleGradient
from mlxhog.theory.analysis.staleness import ObservedStaleness
from mlxhog.theory.bounds import Bound
from mlxhog.theory.rules import Rule

OFTEN = 0.5
"""Share of parameters, or of pairs of updates, above which conflict is common."""

TURNED = 0.5
"""Cosine between an old gradient and a fresh one below which the old one mostly misleads."""

FRESH = 0.9
"""Cosine above which an old gradient is nearly as good as a fresh one."""


class Lag(NamedTuple):
    """The staleness of the bounds, in updates: mean, largest, and whether a run showed it.

    Without a run it is that of workers that are equal and never idle: their number - 1.
    """

    mean: float
    largest: float
    seen: bool


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The measurements of a model and its training that advice depends on.

    Attributes:
        config: of the training.
        write: as the option of that name.
        cores: of this machine.
        trained: whether the parameters come from a checkpoint.
        blocks: measured conflicts.
        lag: staleness.
        observed: the staleness of a run; None without a run.
        stale_gradients: the worth of late gradients, by lag.
        bounds: the theorems, applied.
    """

    config: TrainConfig
    write: str
    cores: int
    trained: bool
    blocks: Sequence[BlockConflicts]
    lag: Lag
    observed: ObservedStaleness | None
    stale_gradients: Sequence[StaleGradient]
    bounds: Sequence[Bound]

    @property
    def dense_share(self) -> float:
        """The share of the parameters in blocks in which most pairs of updates meet."""
        total = sum(one.parameters for one in self.blocks)
        return sum(one.parameters for one in self.blocks if one.p_conf > OFTEN) / total

    @cached_property
    def strictest(self) -> Bound:
        """Of all blocks the least lag for which conflicts cost nothing: tau <= n / (2 Dbar)."""
        each = (one for one in self.bounds if one["name"] == "perturbed iterate")
        return min(each, key=lambda one: float(one["values"]["largest_tau"]))

    @property
    def allowed(self) -> float:
        """That lag."""
        return float(self.strictest["values"]["largest_tau"])

    @property
    def lock_free(self) -> Hogwild | None:
        """The strategy, if its workers are lock-free and their steps late."""
        strategy = self.config.strategy
        return strategy if isinstance(strategy, Hogwild) and self.lag.mean > 0 else None

    @property
    def stale(self) -> StaleGradient | None:
        """The worth of a gradient of typical lateness; None if it was not measured."""
        lag, measured = max(1.0, self.lag.mean), self.stale_gradients
        return next((one for one in measured if one.lag >= lag), measured[-1] if measured else None)

    @property
    def ages(self) -> float | None:
        """The cosine of such a gradient with a fresh one; None where no sync start could help."""
        begun = self.lock_free is not None and self.lock_free.rounds_share > 0
        return None if self.stale is None or self.lag.mean == 0 or begun else self.stale.cosine


def verdict(facts: Analysis) -> str:
    """Return one line of up to 80 characters: whether lock-free training is sound."""
    lag, stale = facts.lag, facts.stale
    if lag.mean == 0:
        return "Yes: one worker is never late."
    if facts.allowed >= lag.largest:
        return (
            f"Yes: updates seldom meet; theory allows a lag of {facts.allowed:.3g}, and "
            f"{lag.largest:g} is the largest."
        )
    if stale is None:
        return f"Not by theory: updates meet in {facts.dense_share:.0%} of the parameters."
    words = "Doubtful: late gradients mislead"
    if stale.cosine >= FRESH:
        words = "Yes in practice: late gradients stay good"
    elif stale.cosine >= TURNED:
        words = "With care: late gradients lose some worth"
    return f"{words} (cosine {stale.cosine:.2f}); no theorem covers it."


# -- reasons that several rows have ----------------------------------------------------------------


def _lost(f: Analysis) -> str:
    if f.observed is None or f.observed.lost_update_rate is None:
        return "the share of lost increments was not measured"
    lost, source = f.observed.lost_update_rate, f.observed.source
    return f"{lost:.2g} of all increments were lost in the {source} with write {f.observed.write}"


def _lag_rule(f: Analysis) -> str:
    return (
        f"tau <= n / (2 Dbar) allows a lag of {f.allowed:.3g} in {f.strictest['block']}, and "
        f"{f.lag.largest:g} is the largest"
    )


def _ageing(f: Analysis) -> str:
    assert f.stale is not None, "rows on ageing hold only where it was measured"
    where = "at this checkpoint" if f.trained else "at the initial values"
    return (
        f"a batch's gradient has a cosine of {f.stale.cosine:.2f} with its own "
        f"{f.stale.lag} updates later, {where}"
    )


def _start(f: Analysis) -> tuple[str, str]:
    own = f.lock_free
    if own is None or not (own.writes_whole_steps and own.is_lock_free):
        return "a longer warm-up, as the other options leave no synchronous start", ""
    share = 0.1 if (f.ages or 0.0) < TURNED else 0.05
    return "train the first part in sync", f"--async-after {share}"


def _workers(f: Analysis) -> tuple[str, str]:
    count = min(f.cores, 1 + int(min(f.allowed, f.cores)))
    return f"up to {count}", f"--workers {count}"


# -- the rows --------------------------------------------------------------------------------------

RULES: tuple[Rule[Analysis, tuple[str, str]], ...] = (
    Rule(
        "write",
        lambda f: True,
        lambda f: (
            "add steps losslessly (stripe locks), as write=auto does on CPUs",
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
        lambda f: f"sparsity does not justify a second worker: {_lag_rule(f)}",
    ),
    Rule("workers", lambda f: True, _workers, _lag_rule),
    Rule(
        "predicted reads",
        lambda f: f.lock_free is not None,
        lambda f: (
            (f"keep predict={f.config.prediction}", "")
            if f.config.prediction != "none"
            else ("use predict=last", "--predict last")
            if f.config.shares_moments
            else ("use predict=own", "--predict own")
        ),
        lambda f: f"a step is {f.lag.mean:.2g} updates old on average when it is added, for a part "
        "of which predicted parameters make up",
    ),
    Rule(
        "synchronous start",
        lambda f: f.ages is not None and f.ages >= FRESH,
        lambda f: ("not needed: stale gradients are good here", ""),
        _ageing,
    ),
    Rule(
        "freshness",
        lambda f: f.trained and f.ages is not None and f.ages < FRESH,
        lambda f: ("fewer workers, or a smaller lr, would make more of each gradient", ""),
        _ageing,
    ),
    Rule("synchronous start", lambda f: f.ages is not None and not f.trained, _start, _ageing),
    Rule(
        "disjoint blocks",
        lambda f: f.dense_share > OFTEN and getattr(f.config.strategy, "blocks", "") != "disjoint",
        lambda f: (
            "worth a try against conflicts, but not against old gradients", "--blocks disjoint"
        ),
        lambda f: f"updates meet in {f.dense_share:.0%} of the parameters; workers with blocks of "
        "their own never write the same element at once, and write less in a step",
    ),
)  # fmt: skip
"""The first row of a topic that holds is its advice; the most consequential topics come first."""


def advise(facts: Analysis) -> Iterator[dict[str, str]]:
    """Yield `topic`, `recommend`, `because` and `flags` of `mlxhog train` of each topic.

    The flags are "" for no change, and where the other options do not take them.
    """
    decided = dict[str, Rule[Analysis, tuple[str, str]]]()
    for rule in RULES:
        if rule.topic not in decided and rule.holds(facts):
            decided[rule.topic] = rule
    for topic, rule in decided.items():
        (recommend, flags), because = rule.answer(facts), rule.because(facts)
        flags = flags if _fits(facts.config, flags) else ""
        yield {"topic": topic, "recommend": recommend, "because": because, "flags": flags}


def _fits(config: TrainConfig, flags: str) -> bool:
    """Whether the configuration takes these flags, too."""
    words = flags.replace("--", "").split()
    added: dict[str, Any] = {
        flag.replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    try:
        replace(config, **added)
    except ConfigError:
        return False
    return True
