"""Advice for training a model that was measured: rows, each of which names the number behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.config import optimizers
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizer import OptimizerChoice, Sharing
from mlxhog.config.optimizers import Momentum
from mlxhog.config.strategies import Hogwild
from mlxhog.config.strategy import sparsify
from mlxhog.errors import ConfigError
from mlxhog.theory.analysis.conflicts import BlockConflicts, RowConflicts
from mlxhog.theory.analysis.sampling import StaleGradient
from mlxhog.theory.analysis.staleness import ObservedStaleness
from mlxhog.theory.bounds import Bound
from mlxhog.theory.rules import Rule, holding

OFTEN = 0.5
"""Share of parameters, or of pairs of updates, above which conflict is common."""

TURNED = 0.5
"""Cosine between an old gradient and a fresh one below which the old one mostly misleads."""

FRESH = 0.9
"""Cosine above which an old gradient is nearly as good as a fresh one."""


@dataclass(frozen=True)
class Advice:
    """One recommendation.

    Attributes:
        topic: such as "workers".
        recommend: the recommendation.
        because: the numbers.
        flags: of `mlxhog train`; "" for no change.
    """

    topic: str
    recommend: str
    because: str
    flags: str = ""


@dataclass(frozen=True, kw_only=True)
class Lag:
    """The staleness of the bounds.

    Attributes:
        mean: in updates; of workers that are never idle, their number - 1.
        largest: of any update.
        seen: whether it was observed in a run; else it is that of equal workers.
    """

    mean: float
    largest: float
    seen: bool


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All measurements that advice uses.

    Attributes:
        config: of the training.
        write: as the option of that name.
        cores: of this machine.
        trained: whether the parameters come from a checkpoint.
        blocks: measured conflicts.
        embedding: rows of the embedding.
        tables: rows of tables of n-grams, if the model has any.
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
    embedding: RowConflicts
    lag: Lag
    observed: ObservedStaleness | None
    stale_gradients: Sequence[StaleGradient]
    bounds: Sequence[Bound]
    tables: Sequence[RowConflicts] = ()

    @property
    def dense_share(self) -> float:
        """The share of the parameters in blocks in which most pairs of updates meet."""
        total = sum(one.block.parameters for one in self.blocks)
        dense = (one for one in self.blocks if one.p_conf.value > OFTEN)
        return sum(one.block.parameters for one in dense) / total

    @property
    def strictest(self) -> Bound:
        """Of all blocks the least lag for which conflicts cost nothing: tau <= n / (2 Dbar)."""
        each = (one for one in self.bounds if one.name == "perturbed iterate")
        return min(each, key=lambda one: one.values["largest_tau"])

    @property
    def allowed(self) -> float:
        """That lag."""
        return self.strictest.values["largest_tau"]

    @property
    def late(self) -> bool:
        """Whether workers are lock-free, and their steps late."""
        return isinstance(self.config.strategy, Hogwild) and self.lag.mean > 0

    @property
    def stale(self) -> StaleGradient | None:
        """The worth of a gradient of typical lateness; None if it was not measured."""
        lag, measured = max(1.0, self.lag.mean), self.stale_gradients
        return next((one for one in measured if one.lag >= lag), measured[-1] if measured else None)

    @property
    def starts_late(self) -> bool:
        """Whether a synchronous start is a topic: steps are late, and there is none yet."""
        strategy = self.config.strategy
        has_one = isinstance(strategy, Hogwild) and strategy.async_after > 0
        return self.stale is not None and self.lag.mean > 0 and not has_one

    @property
    def may_start_in_sync(self) -> bool:
        """Whether the options allow a synchronous start."""
        strategy = self.config.strategy
        return (
            isinstance(strategy, Hogwild) and strategy.writes_whole_steps and strategy.is_lock_free
        )

    @property
    def optimizer(self) -> OptimizerChoice:
        """The optimizer of the training."""
        return optimizers.of(self.config)

    @property
    def step_rule(self) -> Bound:
        """The rule for dense problems."""
        return next(one for one in self.bounds if one.name == "step for dense problems")

    @property
    def most_lr(self) -> float:
        """The step size of that rule; momentum adds up to steps 1 / (1 - momentum) as long."""
        shorter = 1 - self.optimizer.momentum if isinstance(self.optimizer, Momentum) else 1.0
        return self.step_rule.values["constant_step"] * shorter

    @property
    def shares_moments(self) -> bool | None:
        """Whether workers share moments; None if that cannot be chosen."""
        strategy = self.config.strategy
        if not self.late or not isinstance(self.optimizer, Sharing):
            return None
        assert isinstance(strategy, Hogwild), "late steps are lock-free"
        return self.config.shares_moments if strategy.writes_whole_steps else None

    @property
    def widest(self) -> BlockConflicts:
        """The block with most parameters, if possible of a dense gradient."""
        matrices = [one for one in self.blocks if not one.block.row_sparse] or self.blocks
        return max(matrices, key=lambda one: one.block.parameters)

    @property
    def wanted_p_conf(self) -> float:
        """Largest p_conf for which p_conf tau <= 1/2 at the largest lag."""
        return 1 / (2 * max(1.0, self.lag.largest))


def verdict(facts: Evidence) -> str:
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


def _lost(f: Evidence) -> str:
    if f.observed is None or f.observed.lost_update_rate is None:
        return "the share of lost increments was not measured"
    how = "" if f.observed.write == "racy" else f" with write {f.observed.write}"
    lost, source = f.observed.lost_update_rate, f.observed.source
    return f"{lost:.2g} of all increments were lost in the {source}{how}"


def _lag_rule(f: Evidence) -> str:
    rule = f"tau <= n / (2 Dbar) allows a lag of {f.allowed:.3g} in {f.strictest.block}"
    if f.observed is None:
        return rule
    seen = f.observed.all
    return (
        f"{rule}; {f.observed.workers} workers had a staleness of {seen.mean:.2g} on average, "
        f"{seen.max} at most"
    )


def _curved(f: Evidence) -> str:
    return (
        f"gradients changed by up to {f.step_rule.inputs['smoothness']:.3g} per unit of distance, "
        f"and staleness was {f.lag.largest:g} at most"
    )


MOMENTS = (
    "private ones cost memory for each worker, and see its gradients alone; shared ones are one "
    "pair that sees all gradients, and cost traffic between cores, as every step writes them under "
    "the parameters' locks"
)


def _ageing(f: Evidence) -> str:
    assert f.stale is not None, "rows on ageing hold only where it was measured"
    where = "at this checkpoint" if f.trained else "at the initial values"
    return (
        f"after {f.stale.lag} update{'s' * (f.stale.lag > 1)} by others the gradient of a batch "
        f"has a cosine of {f.stale.cosine:.2f} with the old one, {where}"
    )


def _cosine(f: Evidence) -> float:
    return 1.0 if f.stale is None else f.stale.cosine


def _rows(f: Evidence) -> str:
    rows = f.embedding
    hot = ", ".join(f"{one['text']} {one['share']:.0%}" for one in rows.hottest[:3])
    return (
        f"a batch touches {rows.mean_rows:.0f} of {rows.rows} rows; hottest are {hot} of the "
        f"batches, so Delta is {rows.delta:.3g} and p_conf {rows.p_conf:.3g}; without the "
        f"{len(rows.hottest)} hottest rows p_conf is {rows.without_hottest:.3g}"
    )


def _written(f: Evidence) -> str:
    p_conf = f.widest.p_conf
    return (
        f"written parts of {f.widest.block.name} meet with probability {p_conf.value:.3g} "
        f"({p_conf.low:.2g} to {p_conf.high:.2g}), and p_conf * tau <= 1/2 at a lag of "
        f"{max(1.0, f.lag.largest):g} needs {f.wanted_p_conf:.2g}"
    )


def _random_share(f: Evidence) -> float:
    """F: two random sets of a share F of n elements meet with probability 1 - exp(-F^2 n)."""
    return math.sqrt(-math.log1p(-f.wanted_p_conf) / f.widest.block.parameters)


# -- the rows --------------------------------------------------------------------------------------

RULES: tuple[Rule[Evidence, tuple[str, str]], ...] = (
    Rule(
        "write",
        lambda f: f.allowed >= f.lag.largest,
        lambda f: (
            "plain adds (racy) can lose little here; the theorems assume lossless ones",
            "" if f.write == "racy" else "--write racy",
        ),
        lambda f: "updates seldom meet: the block with most conflict, "
        f"{f.strictest.block}, allows a lag of {f.allowed:.3g}, and {f.lag.largest:g} was the "
        f"largest; {_lost(f)}",
    ),
    Rule(
        "write",
        lambda f: True,
        lambda f: (
            "add steps losslessly (stripe locks), as write=auto does on CPUs",
            "--write lossless" if f.write == "racy" else "",
        ),
        lambda f: f"{f.dense_share:.0%} of the parameters are in blocks where most pairs of "
        f"updates meet; {_lost(f)}; no theorem here covers lost increments, and locks of whole "
        "stripes cost dense steps next to nothing",
    ),
    Rule(
        "workers",
        lambda f: f.allowed < 1,
        lambda f: (
            f"at most one per core ({f.cores} here), and compare their loss with one worker's at "
            "equal tokens, or with --strategy sync",
            "",
        ),
        lambda f: "sparsity does not justify a second worker, since two have a lag of 1: "
        f"{_lag_rule(f)}. Small enough steps keep dense training sound; workers beyond the cores "
        "add staleness only",
    ),
    Rule(
        "workers",
        lambda f: True,
        lambda f: (
            f"up to {min(f.cores, 1 + int(min(f.allowed, f.cores)))}",
            f"--workers {min(f.cores, 1 + int(min(f.allowed, f.cores)))}",
        ),
        _lag_rule,
    ),
    Rule(
        "step size",
        lambda f: "smoothness" in f.step_rule.inputs and f.optimizer.is_adaptive,
        lambda f: (
            f"leave lr {f.config.top_lr:g} as it is for one worker, and lower it first if several "
            "do worse",
            "",
        ),
        lambda f: f"the rule for dense problems (plain SGD: lr <= {f.most_lr:.2g}) does not cover "
        f"{f.optimizer.title or f.optimizer.name}, whose steps do not scale with the gradient; "
        + _curved(f),
    ),
    Rule(
        "step size",
        lambda f: "smoothness" in f.step_rule.inputs and f.config.top_lr > f.most_lr,
        lambda f: (
            f"lower lr from {f.config.top_lr:g} to {f.most_lr:.2g}", f"--lr {f.most_lr:.2g}"
        ),
        lambda f: f"lr <= 1 / (L sqrt(tau_max tau_C)): {_curved(f)}",
    ),
    Rule(
        "step size",
        lambda f: "smoothness" in f.step_rule.inputs,
        lambda f: (f"keep lr {f.config.top_lr:g}", ""),
        lambda f: f"it is below 1 / (L sqrt(tau_max tau_C)) = {f.most_lr:.2g}: {_curved(f)}",
    ),
    Rule(
        "predicted reads",
        lambda f: f.late,
        lambda f: (
            (f"keep predict={f.config.prediction}", "")
            if f.config.prediction != "none"
            else ("use predict=last", "--predict last")
            if f.config.shares_moments
            else ("use predict=own", "--predict own")
        ),
        lambda f: f"a step is {f.lag.mean:.2g} updates old on average when it is added; a read at "
        "predicted parameters, by their last movement, makes up for a part of that",
    ),
    Rule(
        "moments",
        lambda f: f.shares_moments is not None
        and not (isinstance(f.optimizer, Sharing) and f.optimizer.shares_by_itself),
        lambda f: (f"keep moments={'shared' if f.shares_moments else 'private'}", ""),
        lambda f: f"{MOMENTS}; no measurement compares them for {f.optimizer.title}",
    ),
    Rule(
        "moments",
        lambda f: f.shares_moments is not None,
        lambda f: (
            ("keep moments=shared", "")
            if f.shares_moments
            else ("use moments=shared, predict=last", "--moments shared --predict last")
        ),
        lambda f: f"a step is {f.lag.mean:.2g} updates old on average when it is added; with "
        "moments of all workers' gradients, the last step of any worker is the best guess of the "
        f"next one; {MOMENTS}",
    ),
    Rule(
        "synchronous start",
        lambda f: f.starts_late and _cosine(f) >= FRESH,
        lambda f: ("not needed: stale gradients are good here", ""),
        _ageing,
    ),
    Rule(
        "freshness",
        lambda f: f.starts_late and f.trained and _cosine(f) < FRESH,
        lambda f: ("fewer workers, or a smaller lr, would make more of each gradient", ""),
        lambda f: f"{_ageing(f)}, with full steps of lr {f.config.top_lr:g}",
    ),
    Rule(
        "synchronous start",
        lambda f: f.starts_late and not f.trained,
        lambda f: (
            ("a longer warm-up, as the other options leave no synchronous start", "")
            if not f.may_start_in_sync
            else ("train the first part in sync", "--async-after 0.1")
            if _cosine(f) < TURNED
            else ("train the first part in sync if every bit of loss counts", "--async-after 0.05")
        ),
        lambda f: f"{_ageing(f)}, with full steps of lr {f.config.top_lr:g}: gradients age "
        "fastest at the start; warm-up (small first steps) helps, too",
    ),
    Rule(
        "embedding",
        lambda f: any(one.block.row_sparse for one in f.blocks),
        lambda f: (
            "nothing to do: only the rows of a batch are added to, each under its own lock", ""
        ),
        _rows,
    ),
    Rule(
        "embedding",
        lambda f: True,
        lambda f: ("an embedding that is not tied to the head gets gradients in few rows", ""),
        lambda f: f"a tied one gets gradients in every row from every batch; untied, {_rows(f)}",
    ),
    Rule(
        "sparsified steps",
        lambda f: sparsify(f.config) != "none",
        lambda f: (
            f"{sparsify(f.config)} is sparse enough for the theory"
            if f.widest.p_conf.high <= f.wanted_p_conf
            else f"{sparsify(f.config)} buys no sparsity that the theory could use",
            "",
        ),
        _written,
    ),
    Rule(
        "sparsified steps",
        lambda f: True,
        lambda f: (
            f"only for the theory to apply: at most {_random_share(f):.2%} of the elements of "
            f"{f.widest.block.name} in a step; compare the loss",
            f"--sparsify topk:{_random_share(f):.1g}",
        ),
        lambda f: f"p_conf * tau <= 1/2 at a lag of {max(1.0, f.lag.largest):g} allows two steps "
        f"to meet with probability {f.wanted_p_conf:.2g}, as random sets of that share of "
        f"{f.widest.block.parameters:,} elements do (1 - exp(-F^2 n)); the largest elements of "
        "gradients are not random sets and meet more often: analyze with the same flag measures it",
    ),
    Rule(
        "disjoint blocks",
        lambda f: getattr(f.config.strategy, "blocks", "") == "disjoint",
        lambda f: ("nothing more is needed against conflicts between simultaneous updates", ""),
        lambda f: "with blocks=disjoint no two workers write the same block at once, while the "
        f"table is about whole updates; gradients are still {f.lag.mean:.2g} updates old",
    ),
    Rule(
        "disjoint blocks",
        lambda f: f.dense_share > OFTEN,
        lambda f: (
            "worth a try against conflicts, but not against old gradients", "--blocks disjoint"
        ),
        lambda f: f"updates meet in {f.dense_share:.0%} of the parameters; workers that hold "
        "different blocks never write the same element at once, and each writes a part of the "
        "model per step, so compare the loss at equal time",
    ),
)  # fmt: skip
"""The first row of a topic that holds is its advice; the most consequential topics come first."""


def advise(facts: Evidence) -> Iterator[Advice]:
    """Yield the recommendation of each topic; flags only where the options take them."""
    decided = set[str]()
    for rule in holding(RULES, facts):
        if rule.topic in decided:
            continue
        decided.add(rule.topic)
        recommend, flags = rule.answer(facts)
        because = rule.because(facts)
        yield Advice(rule.topic, recommend, because, flags if _fits(facts.config, flags) else "")


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
