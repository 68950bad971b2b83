"""What to do, and which measured number says so. Never one number for a whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlxhog.config import TrainConfig
from mlxhog.options import options
from mlxhog.theory.ageing import Age
from mlxhog.theory.conditions import Condition, Lag
from mlxhog.theory.conflicts import BlockConflicts
from mlxhog.theory.embedding_rows import RowStatistics
from mlxhog.theory.observed import Observed

OFTEN = 0.5
"""Share of parameters, or of pairs of updates, above which conflict is the rule."""

TURNED = 0.5
"""Cosine between an old gradient and a fresh one below which the old one mostly misleads."""

FRESH = 0.9
"""Cosine above which an old gradient is nearly as good as a fresh one."""


@dataclass(frozen=True)
class Advice:
    """One recommendation.

    Attributes:
        topic: what it is about.
        recommend: what to do.
        because: the numbers.
        flags: of `mlxhog train`; "" where nothing is to be changed.
    """

    topic: str
    recommend: str
    because: str
    flags: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that advice is made of.

    Attributes:
        config: how the model is trained.
        write: how its steps are added.
        cores: of this machine.
        trained: whether the parameters come from a checkpoint.
        blocks: measured conflicts.
        embedding: rows of the embedding.
        lag: staleness.
        seen: the run it comes from; None where none was made.
        ages: what late gradients are worth, by lag.
        conditions: the theorems' rules.
    """

    config: TrainConfig
    write: str
    cores: int
    trained: bool
    blocks: Sequence[BlockConflicts]
    embedding: RowStatistics
    lag: Lag
    seen: Observed | None
    ages: Sequence[Age]
    conditions: Sequence[Condition]

    @property
    def dense(self) -> list[BlockConflicts]:
        """Blocks in which most pairs of updates meet."""
        return [one for one in self.blocks if one.elements.p_conf.value > OFTEN]

    @property
    def dense_share(self) -> float:
        """Their share of the parameters."""
        total = sum(one.block.parameters for one in self.blocks)
        return sum(one.block.parameters for one in self.dense) / total


def advise(found: Evidence) -> Iterator[Advice]:
    """Yield recommendations, the most consequential first."""
    yield _write(found)
    yield _workers(found)
    yield from _step(found)
    yield from _read(found)
    yield from _early(found)
    yield _embedding(found)
    yield _sparsify(found)


def _write(found: Evidence) -> Advice:
    lost = None if found.seen is None else found.seen.lost_update_rate
    rate = "not measured"
    if lost is not None and found.seen is not None:
        how = "" if found.seen.write == "racy" else f" with write {found.seen.write}"
        rate = f"{lost:.2g} of all increments were lost in the {found.seen.source}{how}"
    if found.dense_share > OFTEN:
        return Advice(
            "write",
            "add steps losslessly (stripe locks), which is what write=auto does on CPUs",
            f"{found.dense_share:.0%} of the parameters are in blocks where any two updates are "
            f"likely to meet; {rate}; no theorem here covers lost increments, and "
            "locking whole stripes costs dense steps next to nothing",
            "" if found.write != "racy" else "--write lossless",
        )
    return Advice(
        "write",
        "plain adds (racy) are sound here",
        f"only {found.dense_share:.0%} of the parameters are in blocks where two updates usually "
        f"meet; {rate}",
        "--write racy",
    )


def _workers(found: Evidence) -> Advice:
    limits = {
        one.block: one.bound.values["largest_tau"]
        for one in found.conditions
        if one.bound.name == "perturbed iterate"
    }
    strictest = min(limits, key=lambda name: limits[name])
    seen = ""
    if found.seen is not None:
        seen = (
            f"; {found.seen.workers} workers were seen at staleness {found.seen.mean:.2g} on "
            f"average and {found.seen.largest} at most"
        )
    most = f"at most {found.cores} CPU workers, one per core"
    if limits[strictest] < 1:
        return Advice(
            "workers",
            f"{most}; check their loss against one worker's at equal tokens (or --strategy sync)",
            f"sparsity justifies no second worker: tau <= n / (2 Dbar) gives {limits[strictest]:.2g} "
            f"in {strictest}, less than the lag of 1 that two workers have{seen}; what keeps dense "
            "training sound is a small enough step, and more workers than cores only add staleness",
        )
    count = min(found.cores, 1 + int(min(limits[strictest], found.cores)))
    return Advice(
        "workers",
        f"up to {count} workers",
        f"tau <= n / (2 Dbar) allows a lag of {limits[strictest]:.3g} in {strictest}, the block "
        f"with most conflict{seen}",
        f"--workers {count}",
    )


def _step(found: Evidence) -> Iterator[Advice]:
    (rule,) = (one.bound for one in found.conditions if one.bound.name == "step for dense problems")
    limit, lr = rule.values["constant_step"], found.config.lr
    if "smoothness" not in rule.inputs:
        return
    curved = (
        f"gradients were seen to change by {rule.inputs['smoothness']:.3g} per unit of distance, "
        f"and staleness was {found.lag.largest:g} at most"
    )
    if found.config.optimizer == "adamw":
        yield Advice(
            "step size",
            f"leave lr {lr:g} as it is for one worker, and lower it first if several do worse",
            f"the rule for dense problems (plain SGD: lr <= {limit:.2g}) does not cover AdamW, "
            f"whose steps do not scale with the gradient; {curved}",
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


def _read(found: Evidence) -> Iterator[Advice]:
    if found.config.strategy != "hogwild" or found.lag.mean == 0:
        return
    predicts = found.config.predict == "own"
    yield Advice(
        "predicted reads",
        "keep predict=own" if predicts else "use predict=own",
        f"a step is {found.lag.mean:.2g} updates old on average when it lands, in blocks that every "
        "update touches; a read that is moved on by the worker's last movement makes up for part "
        "of it",
        "" if predicts else "--predict own",
    )


def _early(found: Evidence) -> Iterator[Advice]:
    if not found.ages or found.lag.mean == 0:
        return
    lag = max(1.0, found.lag.mean)
    age = next((one for one in found.ages if one.lag >= lag), found.ages[-1])
    told = (
        f"after {age.lag} update{'s' * (age.lag > 1)} by others the gradient of a batch has a "
        f"cosine of {age.cosine:.2f} with what it was"
    )
    where = "at this checkpoint" if found.trained else "at the initial values"
    if age.cosine >= FRESH:
        yield Advice(
            "synchronous start", "not needed: stale gradients are good here", f"{told}, {where}"
        )
    elif found.trained:
        yield Advice(
            "freshness",
            "fewer workers, or a smaller lr, would make more of each gradient",
            f"{told}, {where}, with full steps of lr {found.config.lr:g}",
        )
    else:
        strong = age.cosine < TURNED
        yield Advice(
            "synchronous start",
            "train the first part in sync" + ("" if strong else " where every bit counts"),
            f"{told}, {where}, with full steps of lr {found.config.lr:g}: gradients age fastest "
            "then, and warm-up (small first steps) helps against the same thing",
            f"--async-after {0.1 if strong else 0.05}" if not found.config.async_after else "",
        )


def _embedding(found: Evidence) -> Advice:
    rows = found.embedding
    hot = ", ".join(f"{token.text} {token.share:.0%}" for token in rows.hottest[:3])
    facts = (
        f"a batch touches {rows.mean_rows:.0f} of {rows.rows} rows; the hottest are in most batches "
        f"({hot}), so Delta is {rows.delta:.3g} and p_conf {rows.p_conf:.3g}; without the "
        f"{len(rows.hottest)} hottest rows p_conf is {rows.without_hottest:.3g}"
    )
    sparse = any(one.block.row_sparse for one in found.blocks)
    if not sparse:
        return Advice(
            "embedding",
            "an embedding of its own (not tied to the head) would have row-sparse steps",
            f"tied to the head it gets a gradient in every row; {facts}",
        )
    return Advice(
        "embedding", "nothing to do: only rows in the batch are added to, each under its own lock",
        facts,
    )  # fmt: skip


def _sparsify(found: Evidence) -> Advice:
    widest = max(found.blocks, key=lambda one: one.block.parameters)
    n, lag = widest.block.parameters, max(1.0, found.lag.largest)
    # Two random sets of a share F of n elements meet with probability 1 - exp(-F^2 n).
    share = math.sqrt(-math.log1p(-1 / (2 * lag)) / n) if lag > 0.5 else 1.0
    known = options(TrainConfig)
    flags = f"--sparsify topk:{share:.1g}" if "sparsify" in known else ""
    return Advice(
        "sparsified steps",
        f"for p_conf * tau <= 1/2 keep at most {share:.2%} of {widest.block.name}'s elements; "
        "compare the loss with and without",
        f"random sets of that share of its {n:,} elements meet with probability {1 / (2 * lag):.2g} "
        f"(1 - exp(-F^2 n)) at a lag of {lag:g}; the largest elements of gradients of one model "
        "are no random sets and meet more often, so this is the most that theory allows",
        flags,
    )
