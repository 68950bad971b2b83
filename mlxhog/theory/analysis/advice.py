"""Advice for training a model: each recommendation names the measured number behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.config import optimizers
from mlxhog.config.config import TrainConfig
from mlxhog.config.optimizer import Sharing
from mlxhog.config.optimizers import Momentum
from mlxhog.config.strategies import Hogwild
from mlxhog.config.strategy import sparsify
from mlxhog.errors import ConfigError
from mlxhog.theory.analysis.conditions import Condition, Lag
from mlxhog.theory.analysis.conflicts import BlockConflicts, RowStatistics
from mlxhog.theory.analysis.staleness import ObservedStaleness, StaleGradient
from mlxhog.theory.analysis.tables import TableConflicts

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
class Evidence:
    """All measurements that advice uses.

    Attributes:
        config: of the training.
        write: as the option of that name.
        cores: of this machine.
        trained: whether the parameters come from a checkpoint.
        blocks: measured conflicts.
        embedding: rows of the embedding.
        tables: conflicts of tables of n-grams, if the model has any.
        lag: staleness.
        observed: the staleness of a run; None without a run.
        stale_gradients: the worth of late gradients, by lag.
        conditions: the theorems' rules.
    """

    config: TrainConfig
    write: str
    cores: int
    trained: bool
    blocks: Sequence[BlockConflicts]
    embedding: RowStatistics
    lag: Lag
    observed: ObservedStaleness | None
    stale_gradients: Sequence[StaleGradient]
    conditions: Sequence[Condition]
    tables: Sequence[TableConflicts] = ()

    @property
    def dense(self) -> list[BlockConflicts]:
        """Blocks in which most pairs of updates meet."""
        return [one for one in self.blocks if one.elements.p_conf.value > OFTEN]

    @property
    def dense_share(self) -> float:
        """The share of the parameters in these blocks."""
        total = sum(one.block.parameters for one in self.blocks)
        return sum(one.block.parameters for one in self.dense) / total

    @property
    def allowed_lags(self) -> dict[str, float]:
        """Largest lag by block for which conflicts cost nothing: tau <= n / (2 Dbar)."""
        return {
            one.block: one.bound.values["largest_tau"]
            for one in self.conditions
            if one.bound.name == "perturbed iterate"
        }

    @property
    def may_start_in_sync(self) -> bool:
        """Whether the options allow a synchronous start."""
        strategy = self.config.strategy
        if not isinstance(strategy, Hogwild):
            return False
        return strategy.writes_whole_steps and strategy.is_lock_free


def verdict(evidence: Evidence) -> str:
    """Return one line of up to 80 characters: whether lock-free training is sound."""
    lag, allowed = evidence.lag, min(evidence.allowed_lags.values())
    if lag.mean == 0:
        return "Yes: one worker is never late."
    if allowed >= lag.largest:
        return (
            f"Yes: updates seldom meet; theory allows a lag of {allowed:.3g}, and {lag.largest:g} "
            "is the largest."
        )
    stale = _typical(evidence)
    if stale is None:
        return f"Not by theory: updates meet in {evidence.dense_share:.0%} of the parameters."
    words = "Doubtful: late gradients mislead"
    if stale.cosine >= FRESH:
        words = "Yes in practice: late gradients stay good"
    elif stale.cosine >= TURNED:
        words = "With care: late gradients lose some worth"
    return f"{words} (cosine {stale.cosine:.2f}); no theorem covers it."


def _typical(evidence: Evidence) -> StaleGradient | None:
    """Return the worth of a gradient of typical lateness; None if it was not measured."""
    lag, measured = max(1.0, evidence.lag.mean), evidence.stale_gradients
    return next((one for one in measured if one.lag >= lag), measured[-1] if measured else None)


def advise(evidence: Evidence) -> Iterator[Advice]:
    """Yield recommendations, the most consequential first."""
    topics = (
        _advise_write,
        _advise_workers,
        _advise_step,
        _advise_read,
        _advise_moments,
        _advise_early,
        _advise_embedding,
        _advise_sparsify,
        _advise_disjoint,
    )
    for topic in topics:
        for advice in topic(evidence):
            yield advice if _fits(evidence.config, advice.flags) else replace(advice, flags="")


def _fits(config: TrainConfig, flags: str) -> bool:
    """Whether the configuration takes these flags, too."""
    words = flags.split()
    added: dict[str, Any] = {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    try:
        replace(config, **added)
    except ConfigError:
        return False
    return True


def _advise_write(evidence: Evidence) -> Iterator[Advice]:
    lost = None if evidence.observed is None else evidence.observed.lost_update_rate
    rate = "the share of lost increments was not measured"
    if lost is not None and evidence.observed is not None:
        how = "" if evidence.observed.write == "racy" else f" with write {evidence.observed.write}"
        rate = f"{lost:.2g} of all increments were lost in the {evidence.observed.source}{how}"
    limits = evidence.allowed_lags
    strictest = min(limits, key=lambda name: limits[name])
    if limits[strictest] >= evidence.lag.largest:
        yield Advice(
            "write",
            "plain adds (racy) can lose little here; the theorems assume lossless ones",
            f"updates seldom meet: the block with most conflict, {strictest}, allows a lag of "
            f"{limits[strictest]:.3g}, and {evidence.lag.largest:g} was the largest; {rate}",
            "" if evidence.write == "racy" else "--write racy",
        )
        return
    yield Advice(
        "write",
        "add steps losslessly (stripe locks), as write=auto does on CPUs",
        f"{evidence.dense_share:.0%} of the parameters are in blocks where most pairs of updates "
        f"meet; {rate}; no theorem here covers lost increments, and locks of whole stripes cost "
        "dense steps next to nothing",
        "--write lossless" if evidence.write == "racy" else "",
    )


def _advise_workers(evidence: Evidence) -> Iterator[Advice]:
    limits = evidence.allowed_lags
    strictest = min(limits, key=lambda name: limits[name])
    rule = f"tau <= n / (2 Dbar) allows a lag of {limits[strictest]:.3g} in {strictest}"
    observation = ""
    if evidence.observed is not None:
        observation = (
            f"; {evidence.observed.workers} workers had a staleness of "
            f"{evidence.observed.mean:.2g} on average, {evidence.observed.largest} at most"
        )
    if limits[strictest] < 1:
        yield Advice(
            "workers",
            f"at most one per core ({evidence.cores} here), and compare their loss with one "
            "worker's at equal tokens, or with --strategy sync",
            f"sparsity does not justify a second worker: {rule}, and two workers have a lag of 1"
            f"{observation}. Small enough steps keep dense training sound; workers beyond the "
            "cores add staleness only",
        )
        return
    count = min(evidence.cores, 1 + int(min(limits[strictest], evidence.cores)))
    yield Advice("workers", f"up to {count}", rule + observation, f"--workers {count}")


def _advise_step(evidence: Evidence) -> Iterator[Advice]:
    (rule,) = (
        one.bound for one in evidence.conditions if one.bound.name == "step for dense problems"
    )
    limit, lr = rule.values["constant_step"], evidence.config.top_lr
    optimizer = optimizers.of(evidence.config)
    if isinstance(optimizer, Momentum):  # it adds up to steps that are 1 / (1 - momentum) as long
        limit *= 1 - optimizer.momentum
    if "smoothness" not in rule.inputs:
        return
    curved = (
        f"gradients changed by up to {rule.inputs['smoothness']:.3g} per unit of distance, and "
        f"staleness was {evidence.lag.largest:g} at most"
    )
    if optimizer.is_adaptive:
        yield Advice(
            "step size",
            f"leave lr {lr:g} as it is for one worker, and lower it first if several do worse",
            f"the rule for dense problems (plain SGD: lr <= {limit:.2g}) does not cover "
            f"{optimizer.title or optimizer.name}, whose steps do not scale with the gradient; "
            f"{curved}",
        )
    elif lr > limit:
        yield Advice(
            "step size",
            f"lower lr from {lr:g} to {limit:.2g}",
            f"lr <= 1 / (L sqrt(tau_max tau_C)): {curved}",
            f"--lr {limit:.2g}",
        )
    else:
        yield Advice(
            "step size",
            f"keep lr {lr:g}",
            f"it is below 1 / (L sqrt(tau_max tau_C)) = {limit:.2g}: {curved}",
        )


def _advise_read(evidence: Evidence) -> Iterator[Advice]:
    if not isinstance(evidence.config.strategy, Hogwild) or evidence.lag.mean == 0:
        return
    config = evidence.config
    predicts = config.prediction != "none"
    best = "last" if config.shares_moments else "own"
    yield Advice(
        "predicted reads",
        f"keep predict={config.prediction}" if predicts else f"use predict={best}",
        f"a step is {evidence.lag.mean:.2g} updates old on average when it is added; a read at "
        "predicted parameters, by their last movement, makes up for a part of that",
        "" if predicts else f"--predict {best}",
    )


def _advise_moments(evidence: Evidence) -> Iterator[Advice]:
    config = evidence.config
    shares, late = config.shares_moments, evidence.lag.mean > 0
    optimizer = optimizers.of(config)
    if not isinstance(config.strategy, Hogwild) or not late:
        return
    if not isinstance(optimizer, Sharing) or not config.strategy.writes_whole_steps:
        return  # their moments cannot be shared
    costs = (
        "private ones cost memory for each worker, and see its gradients alone; shared ones are "
        "one pair that sees all gradients, and cost traffic between cores, as every step writes "
        "them under the parameters' locks"
    )
    if not optimizer.shares_by_itself:
        yield Advice(
            "moments",
            f"keep moments={'shared' if shares else 'private'}",
            f"{costs}; no measurement compares them for {optimizer.title}",
        )
        return
    yield Advice(
        "moments",
        "keep moments=shared" if shares else "use moments=shared, predict=last",
        f"a step is {evidence.lag.mean:.2g} updates old on average when it is added; with moments "
        "of all workers' gradients, the last step of any worker is the best guess of the next "
        f"one; {costs}",
        "" if shares else "--moments shared --predict last",
    )


def _advise_early(evidence: Evidence) -> Iterator[Advice]:
    stale = _typical(evidence)
    if stale is None or evidence.lag.mean == 0:
        return
    strategy = evidence.config.strategy
    if isinstance(strategy, Hogwild) and strategy.async_after > 0:
        return
    measured = (
        f"after {stale.lag} update{'s' * (stale.lag > 1)} by others the gradient of a batch has a "
        f"cosine of {stale.cosine:.2f} with the old one"
    )
    where = "at this checkpoint" if evidence.trained else "at the initial values"
    if stale.cosine >= FRESH:
        yield Advice(
            "synchronous start", "not needed: stale gradients are good here", f"{measured}, {where}"
        )
    elif evidence.trained:
        yield Advice(
            "freshness",
            "fewer workers, or a smaller lr, would make more of each gradient",
            f"{measured}, {where}, with full steps of lr {evidence.config.top_lr:g}",
        )
    else:
        strong = stale.cosine < TURNED
        yield Advice(
            "synchronous start",
            "train the first part in sync" + ("" if strong else " if every bit of loss counts")
            if evidence.may_start_in_sync
            else "a longer warm-up, as the other options leave no synchronous start",
            f"{measured}, {where}, with full steps of lr {evidence.config.top_lr:g}: gradients age "
            "fastest at the start; warm-up (small first steps) helps, too",
            f"--async-after {0.1 if strong else 0.05}" if evidence.may_start_in_sync else "",
        )


def _advise_embedding(evidence: Evidence) -> Iterator[Advice]:
    rows = evidence.embedding
    hot = ", ".join(f"{token.text} {token.share:.0%}" for token in rows.hottest[:3])
    counted = (
        f"a batch touches {rows.mean_rows:.0f} of {rows.rows} rows; hottest are {hot} of the "
        f"batches, so Delta is {rows.delta:.3g} and p_conf {rows.p_conf:.3g}; without the "
        f"{len(rows.hottest)} hottest rows p_conf is {rows.without_hottest:.3g}"
    )
    if not any(one.block.row_sparse for one in evidence.blocks):
        yield Advice(
            "embedding",
            "an embedding that is not tied to the head gets gradients in few rows",
            f"a tied one gets gradients in every row from every batch; untied, {counted}",
        )
        return
    yield Advice(
        "embedding",
        "nothing to do: only the rows of a batch are added to, each under its own lock",
        counted,
    )


def _advise_sparsify(evidence: Evidence) -> Iterator[Advice]:
    matrices = [one for one in evidence.blocks if not one.block.row_sparse] or evidence.blocks
    widest = max(matrices, key=lambda one: one.block.parameters)
    n, lag, p_conf = widest.block.parameters, max(1.0, evidence.lag.largest), widest.elements.p_conf
    target = 1 / (2 * lag)
    if (part := sparsify(evidence.config)) != "none":
        met = p_conf.high <= target
        yield Advice(
            "sparsified steps",
            f"{part} is sparse enough for the theory"
            if met
            else f"{part} buys no sparsity that the theory could use",
            f"written parts of {widest.block.name} meet with probability {p_conf.value:.3g} "
            f"({p_conf.low:.2g} to {p_conf.high:.2g}), and p_conf * tau <= 1/2 at a lag of {lag:g} "
            f"needs {target:.2g}",
        )
        return
    # Two random sets of a share F of n elements meet with probability 1 - exp(-F^2 n).
    share = math.sqrt(-math.log1p(-target) / n)
    yield Advice(
        "sparsified steps",
        f"only for the theory to apply: at most {share:.2%} of the elements of "
        f"{widest.block.name} in a step; compare the loss",
        f"p_conf * tau <= 1/2 at a lag of {lag:g} allows two steps to meet with probability "
        f"{target:.2g}, as random sets of that share of {n:,} elements do (1 - exp(-F^2 n)); the "
        "largest elements of gradients are not random sets and meet more often: analyze with the "
        "same flag measures it",
        f"--sparsify topk:{share:.1g}",
    )


def _advise_disjoint(evidence: Evidence) -> Iterator[Advice]:
    strategy = evidence.config.strategy
    if isinstance(strategy, Hogwild) and strategy.blocks == "disjoint":
        yield Advice(
            "disjoint blocks",
            "nothing more is needed against conflicts between simultaneous updates",
            "with blocks=disjoint no two workers write the same block at once, while the table is "
            f"about whole updates; gradients are still {evidence.lag.mean:.2g} updates old",
        )
    elif evidence.dense_share > OFTEN:
        yield Advice(
            "disjoint blocks",
            "worth a try against conflicts, but not against old gradients",
            f"updates meet in {evidence.dense_share:.0%} of the parameters; workers that hold "
            "different blocks never write the same element at once, and each writes a part of the "
            "model per step, so compare the loss at equal time",
            "--blocks disjoint",
        )
