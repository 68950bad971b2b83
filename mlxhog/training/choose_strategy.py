"""The rule by which a run is lock-free or averages in rounds (`--strategy auto`).

Lock-free workers never wait, but their gradients are late. Gradients of `sync` are never late, but
a round lasts until its last sequence is done, however `sync_shares=speed` divides the sequences.
So what counts is the share of the gradients that rounds lose to waiting:

    in rounds     1 - n / (T sum over workers of n_w / c_w), n_w the tokens of a worker in the last
                  rounds, n their sum, c_w its seconds of computing, T the mean over workers of
                  c_w and its seconds of waiting
    lock-free     1 - 1 / gain, with the gain of gradients per second over rounds:

        hogwild   sum over workers of 1 / (mean time)
        sync      P / (mean over rounds of the largest n t / B)

with n a worker's sequences, divided by mean times, B the sequences of a batch, and t the times of
a worker in the order of measurement.

A run begins with the strategy that suits its devices (`by_likelihood`), and its own steps say
whether it changes to the other (`change_strategy.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final, NamedTuple

from mlxhog.base.workers import WorkerSpec
from mlxhog.strategies import division
from mlxhog.strategies.hogwild import Hogwild
from mlxhog.strategies.strategy import Strategy
from mlxhog.strategies.sync import BY_SPEED

LOCK_FREE: Final = Hogwild()
ROUNDS: Final = BY_SPEED

MARGIN: Final = 1.1
"""Least ratio of gradients per second, hogwild over sync, at which workers do not wait.

Late gradients, each a step of one worker alone, are worth less; but such a run tolerates
disturbances, such as another program. Data: schemes in docs/results.md.
"""

MOST_LOST: Final = 0.15
"""Share of the gradients whose loss to waiting ends rounds.

Gradients that are never late are worth about 13 % (measured once). Rounds of two equal workers
lose 7 %, to three barriers and to uneven gradients.
"""

LEAST_LOST: Final = 1 - 1 / MARGIN
"""Share below which rounds begin again, far below `MOST_LOST`."""

LAST_ROUNDS = 32  # that are looked at: a second or two of a small model
GRADIENTS = 64  # of each worker that show whether rounds pay; twice as many after each end
ABSENT_S = 1.0  # without a round, since a worker is not there, end rounds


def by_likelihood(workers: Sequence[WorkerSpec]) -> tuple[Strategy, Strategy]:
    """The strategies to choose from; a run begins with the first."""
    devices = {(worker.backend.partition(":")[2], worker.threads) for worker in workers}
    return (ROUNDS, LOCK_FREE) if len(devices) == 1 else (LOCK_FREE, ROUNDS)


def title(strategy: str) -> str:
    """The name of a candidate strategy in messages."""
    return f"{strategy}, shares by speed" if strategy == ROUNDS.name else strategy


def first_note(strategy: str, before: str | None) -> str:
    """A note on the strategy with which a run begins.

    Args:
        strategy: its name.
        before: the strategy in which a resumed run was saved; None for another run.
    """
    why = "workers are on one kind of device" if strategy == ROUNDS.name else "workers differ"
    why = "as when it was saved" if before == strategy else f"since {why}"
    return f"strategy {title(strategy)} to begin with, {why}; it changes by measured times"


def gain(seconds: Sequence[Sequence[float]], sequences: int) -> float:
    """Gradients per second of hogwild over those of sync with shares by speed.

    Args:
        seconds: of the gradients of each worker, at least one per worker.
        sequences: per gradient.
    """
    means = [fmean(times) for times in seconds]
    shares = division.sequences(sequences * len(means), [mean / sequences for mean in means])
    rounds = [
        max(share * time / sequences for share, time in zip(shares, times, strict=True))
        for times in zip(*seconds, strict=False)  # as many rounds as the slowest has gradients
    ]
    return sum(1.0 / mean for mean in means) * fmean(rounds) / len(means)


class StepTime(NamedTuple):
    """Tokens and times of a worker's step."""

    tokens: int
    compute_s: float
    wait_s: float

    def lasted_s(self) -> float:
        """Seconds of its round."""
        return self.compute_s + self.wait_s


def lost_in_rounds(steps: Sequence[Sequence[StepTime]]) -> float:
    """Share of the gradients that rounds lost to waiting.

    Args:
        steps: of each worker in the same rounds, at least one.
    """
    tokens = [sum(one.tokens for one in own) for own in steps]
    computed_s = [sum(one.compute_s for one in own) for own in steps]
    lasted_s = fmean(sum(one.lasted_s() for one in own) for own in steps)
    per_s = sum(n / s for n, s in zip(tokens, computed_s, strict=True) if n)
    return 1 - sum(tokens) / (lasted_s * per_s) if per_s else 0.0


def lost_by_last_rounds(steps: Sequence[Sequence[StepTime]]) -> float | None:
    """The share that the last `LAST_ROUNDS` of each worker lost; None if there are fewer.

    The longest is left out: one pause of a worker does not show that there will be another.
    """
    if any(len(own) < LAST_ROUNDS for own in steps):
        return None
    return lost_in_rounds([sorted(own[-LAST_ROUNDS:], key=StepTime.lasted_s)[:-1] for own in steps])


def rounds_would_lose(steps: Sequence[Sequence[StepTime]], sequences: int) -> float:
    """The share that rounds would lose, by lock-free steps of each worker.

    Args:
        steps: of each worker, at least one.
        sequences: of a gradient.
    """
    return 1 - 1 / gain([[one.compute_s for one in own] for own in steps], sequences)
