"""The rule by which a run is lock-free or synchronous (`--strategy auto`).

Lock-free workers never wait, but their gradients are stale. Gradients of `sync` are never stale,
but a step lasts until its last sequence is done, however `sync_shares=speed` divides the sequences.
So what counts is the share of the gradients that synchronous steps lose to waiting:

    sync          1 - n / (T sum over workers of n_w / c_w), n_w the tokens of a worker in the last
                  steps, n their sum, c_w its seconds of computing, T the mean over workers of
                  c_w and its seconds of waiting
    lock-free     1 - 1 / gain, with the gain of gradients per second over sync:

        hogwild   sum over workers of 1 / (mean time)
        sync      P / (mean over steps of the largest n t / B)

with n a worker's sequences, divided by mean times, B the sequences of a batch, and t the times of
a worker in the order of measurement.

A run begins with the strategy that suits its devices (`by_likelihood`), and its own steps say
whether it changes to the other (`StrategyChanges`). It changes while all workers are quiesced, as
for a checkpoint, so no worker holds a ticket. Each step is in one of the two strategies, with the
hyperparameters of that strategy alone: learning rate, momentum, kind of moments, weight prediction.

Synchronous steps need exactly the workers of the start. If others are to join, or one leaves, they
end first, and do not begin again while the workers differ.

With `--async-after` the first part of the budget is synchronous: workers stop at the last such
step, if the budget is in steps or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mlxhog.base.workers import WorkerSpec
from mlxhog.config.config import TrainConfig
from mlxhog.strategies import Serial, division
from mlxhog.strategies.hogwild import Hogwild
from mlxhog.strategies.strategy import Strategy, strategy_of
from mlxhog.strategies.sync import BY_SPEED

if TYPE_CHECKING:
    from mlxhog.training.plan.values import TextPlan

LOCK_FREE: Final = Hogwild()
SYNC: Final = BY_SPEED

MAX_LOST: Final = 0.15
"""Share of the gradients of two workers whose loss to waiting ends sync (`max_lost`).

Gradients that are never stale are worth about 13 % (measured once), but a lock-free run tolerates
disturbances, such as another program. Synchronous steps of two equal workers lose 7 %, to three
barriers and to uneven gradients. Data: schemes in docs/results.md.
"""

LATER: Final = 0.07
"""Extra value of fresh gradients per additional worker.

At equal loss, hogwild takes 1.04 times the gradients of sync with 2 workers, 1.17 with 4, 1.51 with
8, 2.27 with 16. Data: many_cores in docs/results.md.
"""

BEGIN_AT: Final = 0.6
"""Times `max_lost`: the share below which sync begins again, far below."""

LAST_STEPS = 32  # synchronous ones that are looked at: a second or two of a small model
GRADIENTS = 64  # of each worker that show whether sync pays; twice as many after each end
ABSENT_S = 1.0  # without a synchronous step, since a worker is not there, end sync


def max_lost(workers: int) -> float:
    """Waiting overhead above which a run leaves sync: 0.40 at 8 workers, 0.57 at 16."""
    return 1 - (1 - MAX_LOST) / (1 + LATER * (workers - 2))


def by_likelihood(workers: Sequence[WorkerSpec]) -> tuple[Strategy, Strategy]:
    """The strategies to choose from; a run begins with the first."""
    devices = {(worker.backend.partition(":")[2], worker.threads) for worker in workers}
    return (SYNC, LOCK_FREE) if len(devices) == 1 else (LOCK_FREE, SYNC)


def choices(
    named: Strategy | None, workers: Sequence[WorkerSpec], regime: str | None
) -> tuple[Strategy, ...]:
    """The strategies that a run may have, the first one first; `regime` is that of a resumed run.

    `named` is the strategy of the options.
    """
    if len(workers) == 1:
        return (named or Serial(),)
    both = by_likelihood(workers)
    if named is not None:
        if (regimes := named.regimes()) is None:
            return (named,)
        both = regimes
    return both[::-1] if regime == both[1].name else both


def title(strategy: str) -> str:
    """The name of a strategy of `auto` in messages."""
    return f"{strategy}, speed-weighted shares" if strategy == SYNC.name else strategy


def first_note(strategy: str, before: str | None) -> str:
    """A note on the strategy with which a run begins; `before` is that of the resumed run."""
    why = "workers are on one kind of device" if strategy == SYNC.name else "workers differ"
    why = "as when it was saved" if before == strategy else f"since {why}"
    return f"strategy {title(strategy)} to begin with, {why}; it changes by measured times"


def gain(seconds: Sequence[Sequence[float]], sequences: int) -> float:
    """Gradients per second of hogwild over those of sync with speed-weighted shares.

    `seconds` are those of each worker's gradients, each of `sequences` sequences.
    """
    means = [fmean(times) for times in seconds]
    shares = division.sequences(sequences * len(means), [mean / sequences for mean in means])
    steps_s = [
        max(share * time / sequences for share, time in zip(shares, times, strict=True))
        for times in zip(*seconds, strict=False)  # as many as the slowest has gradients
    ]
    return sum(1.0 / mean for mean in means) * fmean(steps_s) / len(means)


class StepTime(NamedTuple):
    """Tokens and times of a worker's step; both are those of all workers' step."""

    tokens: int
    compute_s: float
    wait_s: float


def lost_by_last_steps(steps: Sequence[Sequence[StepTime]]) -> float | None:
    """The share that the last `LAST_STEPS` of each worker lost to waiting; None if there are fewer.

    The longest is left out: one pause of a worker does not show that there will be another.
    """
    if any(len(own) < LAST_STEPS for own in steps):
        return None
    by_length = [sorted(own[-LAST_STEPS:], key=lambda s: s.compute_s + s.wait_s) for own in steps]
    tokens, computed_s, waited_s = np.array([np.sum(own[:-1], axis=0) for own in by_length]).T
    worked = tokens > 0
    per_s = float(np.sum(tokens[worked] / computed_s[worked]))
    lasted_s = float(np.mean(computed_s + waited_s))
    return 1 - float(np.sum(tokens)) / (lasted_s * per_s) if per_s else 0.0


def sync_would_lose(steps: Sequence[Sequence[StepTime]], sequences: int) -> float:
    """The share that synchronous steps would lose, by lock-free steps of each worker."""
    return 1 - 1 / gain([[one.compute_s for one in own] for own in steps], sequences)


def sync_share(plan: TextPlan) -> float:
    """The share of the budget after which sync ends; 0 where measured times say so."""
    chosen = strategy_of(plan.stored)
    return 0.0 if chosen is None else chosen.async_after


def mean_batches_per_step(config: TrainConfig, strategy: Strategy) -> float:
    """Batches of one step of a run that begins with a strategy, in the mean over its steps."""
    chosen = strategy_of(config)
    regimes = None if chosen is None else chosen.regimes()
    if chosen and regimes and config.steps and strategy.name == regimes[0].name:
        return 1.0 + chosen.async_after * (strategy.workers - 1)
    return float(strategy.batches_per_step())


def sync_steps_before(plan: TextPlan, done: int) -> int | None:
    """Synchronous steps before the lock-free ones of this call (`async_after`); None: no limit.

    `done` batches of the run are finished.
    """
    share, budget = sync_share(plan), plan.budget
    if not share or plan.strategy.name != SYNC.name:
        return None

    def until_then(limit: int, before: float) -> int:
        return max(0, math.ceil(round(share * (limit + before) - before, 6)))

    limits = list[int]()
    if budget.steps is not None:
        limits.append(until_then(budget.steps, budget.progress_before))
    if budget.tokens is not None:
        tokens = until_then(budget.tokens, budget.tokens_before)
        limits.append(plan.strategy.steps_of(tokens, done))
    return min(limits, default=None)
