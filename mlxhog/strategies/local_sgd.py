"""Local SGD: H steps of each worker on its own, then the average (Stich 2019, arXiv:1805.09767).

H is `--average-every`. With `--local-after S` the first S steps of the run are averaged one by one,
as in post-local SGD (Lin et al. 2020, arXiv:1808.07217). Workers may take different numbers of
steps (`--local-work speed`): as many as fit the time of H steps of the fastest (DyLU, Liu et al.
2024, arXiv:2401.09135); the average still weighs workers equally, which pulls it towards the text
of those with more steps (Wang et al. 2020, FedNova, arXiv:2007.07481). One worker is the serial
run.

Local SGD is not always better than synchronous steps that send as much (Woodworth et al. 2020,
arXiv:2002.07839). Rules for H: `theory/local_steps.py`.

A meeting has two stages: each worker averages its share of the floats into the parameters, then
takes the parameters as its copy. Each keeps its own optimizer state. Methods that need the last
average, from which a round began, keep it as the anchor (`Anchored`).

    segment              dtype    meaning
    anchor               float32  the last average; each worker writes its share of it, in a meeting
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from mlxhog.arena import Arena
from mlxhog.backends.backend import Float32
from mlxhog.errors import ConfigError
from mlxhog.models.families import ModelConfig
from mlxhog.optim import updates
from mlxhog.optim.updates import Rows
from mlxhog.strategies.local import Local, Stage

ANCHOR: Final = "anchor"


def average_share(strategy: Local, arena: Arena, rank: int) -> None:
    """First stage: a worker's share of the average becomes the parameters."""
    strategy.average(arena, arena.params, strategy.share(arena, rank))


def take_average(strategy: Local, arena: Arena, rank: int) -> None:
    """Last stage: the parameters become the worker's copy, and its next round begins."""
    replica = strategy.replica_segments()[strategy.replica_of(rank)]
    updates.snapshot(arena.segment(replica), arena.params)
    strategy.begin_next(arena, rank)


class LocalSGD(Local):
    """Local runs that meet every H steps."""

    stages: ClassVar[tuple[Stage, ...]] = (average_share, take_average)

    def check(self, model: ModelConfig) -> None:
        """Refuse local steps that do not fit the run.

        Raises:
            ConfigError: H is larger than the run.
        """
        config, steps, limits = self.config, self.choice.local_steps, []
        if config.steps is not None:
            limits.append(config.steps)
        if config.tokens is not None:
            limits.append(config.tokens // self.tokens_per_step)
        per_round = steps * self.workers
        if config.resume is None and limits and per_round > min(limits):
            raise ConfigError(
                f"average_every is {steps}, so {self.workers} workers take "
                f"{per_round} steps before their first average, and the run has {min(limits)}; "
                f"set average_every to at most {max(1, min(limits) // self.workers)}, give more "
                "steps, or take strategy avg_runs"
            )

    def steps_of_round(self, arena: Arena, done: int) -> Sequence[int]:
        """1 in the first part of post-local SGD, else H, or fewer by `local_work`."""
        chosen, steps = self.choice, self.choice.local_steps
        if done < getattr(chosen, "local_after", 0):
            return [1] * self.workers
        if chosen.local_work == "speed":  # as many as fit the time in which the fastest takes H
            seconds = [arena.workers.entry(rank + 1).step_s for rank in range(self.workers)]
            if all(seconds):  # else not all have been measured yet
                return [max(1, int(steps * (min(seconds) / own_s))) for own_s in seconds]
        return [steps] * self.workers


# -- the anchor ----------------------------------------------------------------------------------


class Anchored(LocalSGD):
    """Local SGD that keeps the last average."""

    def kept_segments(self) -> tuple[str, ...]:
        """The copies and the anchor."""
        return (*super().kept_segments(), ANCHOR)

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Start at the parameters, which are the first anchor."""
        super().begin(arena, position)
        if position is None:
            updates.snapshot(arena.segment(ANCHOR), arena.params)


def keep_anchor(strategy: Local, arena: Arena, rank: int) -> None:
    """Stage of a meeting, when the parameters are whole: a share of them becomes the anchor."""
    span = strategy.share(arena, rank)
    np.copyto(arena.segment(ANCHOR)[span], arena.params[span])


def dense(grad: Float32 | Rows, shape: tuple[int, ...]) -> Float32:
    """A copy of a gradient with all of its elements."""
    if not isinstance(grad, Rows):
        return grad.copy()
    whole = np.zeros(shape, np.float32)
    np.add.at(whole, grad.index, grad.values)
    return whole
