"""Local SGD: H steps of each worker on its own, then the average (Stich 2019, arXiv:1805.09767).

H is `--average-every`. With `--local-after S` the first S steps of the run are averaged one by one,
as in post-local SGD (Lin et al. 2020, arXiv:1808.07217). Workers may take different numbers of
steps (`--local-work`): given by rank, or as many as fit the time of H steps of the fastest (DyLU,
Liu et al. 2024, arXiv:2401.09135); the average still weighs workers equally, which pulls it
towards the text of those with more steps (Wang et al. 2020, FedNova, arXiv:2007.07481). One worker
is the serial run.

Local SGD is not always better than synchronous steps that send as much (Woodworth et al. 2020,
arXiv:2002.07839). Rules for H: `theory/local_steps.py`.

A meeting has two stages: each worker averages its share of the floats into the parameters, then
takes the parameters as its copy. The optimizer state of the workers after it:

    --inner-state  each worker continues with
    keep           its own moments and step count
    average        the mean of all workers' moments, and its own step count
    reset          none: its next step is its first

The mean is computed in segments of its own, so that no state is averaged twice if a worker dies
meanwhile. Methods that need the last average, from which a round began, keep it as the anchor
(`Anchored`).

    segment              dtype    meaning
    inner.m, inner.v ..  float32  means of the workers' segments m.1, m.2, .. and so on
    anchor               float32  the last average; each worker writes its share of it, in a meeting
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.backends.backend import Float32
from mlxhog.config import local_strategies
from mlxhog.config.config import TrainConfig
from mlxhog.config.local_strategies import Averaged
from mlxhog.errors import ConfigError
from mlxhog.models.families import ModelConfig
from mlxhog.optim import updates
from mlxhog.optim.updates import Rows
from mlxhog.strategies.local import Local
from mlxhog.strategies.rounds import Rounds

ANCHOR: Final = "anchor"


def average_share(strategy: LocalSGD, arena: Arena, rounds: Rounds, rank: int) -> None:
    """First stage: a worker's share of the average becomes the parameters."""
    span = strategy.share(arena, rank)
    strategy.average(arena, arena.params, span)
    average_state(strategy, arena, span)


def take_average(strategy: LocalSGD, arena: Arena, rounds: Rounds, rank: int) -> None:
    """Last stage: the parameters become the worker's copy, and its next round begins."""
    replica = strategy.replica_segments()[strategy.replica_of(rank)]
    updates.snapshot(arena.segment(replica), arena.params)
    _take_state(strategy, arena, rank)
    rounds.begin_next(rank)


class LocalSGD(Local):
    """Local runs that meet every H steps."""

    choice: Averaged

    stages: ClassVar[tuple[Callable[[Any, Arena, Rounds, int], None], ...]] = (
        average_share,
        take_average,
    )

    def check(self, model: ModelConfig, config: TrainConfig) -> None:
        """Refuse local steps that do not fit the workers or the run.

        Raises:
            ConfigError: H is larger than the run, or local_work is for another number of workers.
        """
        local_work, own = self.choice.local_work, self.choice.steps_by_rank()
        if own is not None and len(own) != self.workers:
            raise ConfigError(
                f"local_work is {local_work}, steps of {len(own)} workers, and the run "
                f"has {self.workers}; give one number for each"
            )
        steps = own or (self.choice.local_steps,)
        self._check_length(config, "local_work" if own else "average_every", steps)

    def _check_length(self, config: TrainConfig, name: str, steps: Sequence[int]) -> None:
        limits = []
        if config.steps is not None:
            limits.append(config.steps)
        if config.tokens is not None:
            limits.append(config.tokens // self.tokens_per_step)
        per_round = sum(steps) * self.workers // len(steps)
        if config.resume is None and limits and per_round > min(limits):
            raise ConfigError(
                f"{name} is {', '.join(map(str, steps))}, so {self.workers} workers take "
                f"{per_round} steps before their first average, and the run has {min(limits)}; "
                f"set {name} to at most {max(1, min(limits) // self.workers)}, give more steps, or "
                "take strategy avg_runs"
            )

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """Those of all local methods, and those of averaged moments."""
        return {**super().segments(n_params), **self.mean_segments}

    def steps_of_round(self, arena: Arena, done: int) -> Sequence[int]:
        """1 in the first part of post-local SGD, else H or the numbers of `local_work`."""
        chosen = self.choice
        if isinstance(chosen, local_strategies.LocalSGD) and done < chosen.local_after:
            return [1] * self.workers
        if chosen.local_work == "speed":
            return self._by_speed(arena)
        return chosen.steps_by_rank() or [chosen.local_steps] * self.workers

    def _by_speed(self, arena: Arena) -> list[int]:
        """As many as fit the time in which the fastest takes H; H until all have been measured."""
        seconds = [arena.workers.entry(rank + 1).step_s for rank in range(self.workers)]
        if not all(seconds):
            return [self.choice.local_steps] * self.workers
        shares = (min(seconds) / own_s for own_s in seconds)
        return [max(1, int(self.choice.local_steps * share)) for share in shares]

    def models_per_meeting(self) -> int:
        """The parameters, and each kind of moment that is averaged."""
        return 1 + len(self.mean_segments)

    @property
    def state_kinds(self) -> tuple[str, ...]:
        """Kinds of private optimizer state that change at an average."""
        return () if self.choice.inner_state == "keep" else self.facts.state_segments

    @property
    def mean_segments(self) -> dict[str, tuple[str, int]]:
        """Segments of the means of optimizer state, where it is averaged."""
        if self.choice.inner_state != "average":
            return {}
        return {f"inner.{kind}": ("float32", PARAMETER_COPY) for kind in self.state_kinds}


# -- the workers' optimizer state ----------------------------------------------------------------


def average_state(strategy: LocalSGD, arena: Arena, span: slice) -> None:
    """Average a part of every kind, in rank order, with `inner_state=average`."""
    workers = strategy.workers
    if strategy.choice.inner_state != "average":
        return
    for kind in strategy.state_kinds:
        first, *others = (arena.segment(f"{kind}.{rank + 1}")[span] for rank in range(workers))
        mean = arena.segment(f"inner.{kind}")[span]
        np.copyto(mean, first)
        for other in others:
            mean += other
        mean *= np.float32(1.0 / workers)


def _take_state(strategy: LocalSGD, arena: Arena, rank: int) -> None:
    """Give a worker the state that its next round begins with; twice is the same as once."""
    inner_state = strategy.choice.inner_state
    for kind in strategy.state_kinds:
        own = arena.segment(f"{kind}.{rank + 1}")
        if inner_state == "average":
            updates.snapshot(own, arena.segment(f"inner.{kind}"))
        else:
            own.fill(0.0)
    if inner_state == "reset":
        arena.workers.entry(rank + 1).opt_step = 0


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


def keep_anchor(strategy: Anchored, arena: Arena, rounds: Rounds, rank: int) -> None:
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
