"""A worker's view of the run, the same for all strategies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.clock import Clock
from mlxhog.arena.control import ControlCommand
from mlxhog.arena.ledger import NO_END, Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.published import SeqlockCounters
from mlxhog.arena.workers import Entry
from mlxhog.backends.backend import Backend
from mlxhog.config.budget import Budget
from mlxhog.models.families import ModelConfig
from mlxhog.optim import Optimizer, UpdateTarget, gradients, updates
from mlxhog.optim.gradients import Grads
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.rule import Orthogonalize, StepWatch
from mlxhog.strategies import prediction
from mlxhog.strategies.strategy import Strategy


@dataclass
class Context:
    """One worker's view of the run."""

    arena: Arena
    ledger: Ledger
    entry: Entry
    slot: int
    owner: int
    strategy: Strategy
    backend: Backend
    optimizer: Optimizer
    metal: MetalSteps | None
    schedule: Callable[[float, int], float]
    budget: Budget
    step_limit: int | None
    decay: frozenset[str]
    model: ModelConfig
    run_dir: Path | None = None
    orthogonalize: Orthogonalize | None = None
    threads: int = 1  # for norm, update and read
    # Before a pause or a background task: applies the pending update, leaves the gate (`ssp`).
    settle: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        """Set what follows from the other fields."""
        self.run, self.workers = self.strategy.run, self.strategy.workers
        self.rank = self.slot - 1
        self.clock = Clock(self.arena.counters, self.budget.seconds)

    @cached_property
    def seqlock(self) -> SeqlockCounters:
        return SeqlockCounters(self.arena, self.slot)

    @property
    def live_workers(self) -> int:
        """Number of workers in the run now, which joining and leaving changes."""
        return self.arena.counters.load("workers") or self.workers

    def target(self, state_slot: int) -> UpdateTarget:
        """Return what optimizers write: the parameters, and the moments of a slot."""
        arena, optimizer = self.arena, self.optimizer
        return UpdateTarget(
            flat=arena.params,
            slots=arena.layout.slots,
            locks=arena.locks(self.slot),
            mode=updates.WRITE_MODES[arena.write],
            private={
                name: arena.segment(f"{name}.{state_slot}") for name in optimizer.state_segments
            },
            shared={name: arena.segment(name) for name in optimizer.shared_segments},
            decay=self.decay,
            metal=self.metal,
            record=prediction.record(arena, self.run, self.live_workers),
            places=arena.layout.state,
            watch=None if self.run.overlap else StepWatch(self.entry),
            orthogonalize=self.orthogonalize,
            threads=self.threads,
        )

    # -- progress of the run ---------------------------------------------------------------------

    def training(self) -> bool:
        return self.arena.counters.load("command") == ControlCommand.TRAIN

    def paused(self) -> bool:
        """Whether workers must be quiesced, for a checkpoint."""
        return bool(self.arena.counters.load("pause"))

    def _tokens(self) -> int:
        """Tokens of this call, those of other machines of the cluster included."""
        counters = self.arena.counters
        return counters.load("tokens") + counters.load("tokens_elsewhere")

    def is_over(self, step_s: float | None = None) -> bool:
        """Whether the training phase has ended, or its budget in tokens or time is used up.

        A step of `step_s`, by default one of this worker, must end in time. A budget in steps is a
        limit of `claim`.
        """
        tokens = self.budget.tokens
        step_s = self.entry.step_s if step_s is None else step_s
        return (
            not self.training()
            or not self.clock.fits(step_s)
            or (tokens is not None and self._tokens() >= tokens)
        )

    def progress(self) -> float:
        """Share of the whole run that is done, in [0, 1]."""
        counters, other_s = self.arena.counters, self.arena.counters.load("ms_elsewhere") / 1e3
        budget = replace(self.budget, seconds_before=self.budget.seconds_before + other_s)
        return budget.progress(
            steps=counters.load("steps"), tokens=self._tokens(), seconds=self.clock.seconds()
        )

    # -- tickets ---------------------------------------------------------------------------------

    @cached_property
    def end_ticket(self) -> int:
        """The first ticket beyond the budget in steps, as it was when training began."""
        return self.arena.counters.load("end_ticket") or NO_END

    def is_handed_out(self, number: int) -> bool:
        """Whether a ticket has been claimed; a dead worker's may come back later."""
        return self.ledger.state(*self.ledger.locate(number)) != TicketState.FREE

    def wait_until(self, condition: Callable[[], bool], *, max_s: float = 1e-3) -> None:
        """Wait for other workers, with growing naps."""
        began_ns, nap_s = monotonic_ns(), 0.0
        while not condition():
            self.entry.beat()
            time.sleep(nap_s)
            nap_s = min(max_s, nap_s + 2e-5)
        self.entry.wait_ns += monotonic_ns() - began_ns

    # -- values of an update ---------------------------------------------------------------------

    def shared_step(self) -> int:
        """Number of the next update of the moments that all workers share, from 1."""
        counters = self.arena.counters
        return counters.load("version") - counters.load("moments_since") + 1

    def lr(self) -> float:
        """Learning rate of the next update."""
        lr = self.schedule(self.progress(), self.arena.counters.load("version"))
        if (live := self.live_workers) != self.workers:  # which the schedule contains
            rule = partial(self.run.workers_factor, self.strategy.lr_workers)
            lr *= rule(live) / rule(self.workers)
        return lr

    def lr_at(self, steps: int, tokens: int, version: int) -> float:
        """Learning rate of an update after some steps and tokens of this call, at a version."""
        progress = self.budget.progress(steps=steps, tokens=tokens, seconds=self.clock.seconds())
        return self.schedule(progress, version)

    def norm(self, grads: Grads) -> float:
        """Euclidean norm of a gradient without tables; finite exactly if every element is."""
        dense = gradients.without_tables(grads, self.arena.layout.slots)
        return gradients.global_norm(dense, self.threads)

    def grad_scale(self, norm: float) -> float:
        return gradients.clip_factor(norm, self.run.clip)

    def copy_to_param_buffer(self) -> None:
        """Copy the current model to the backend, without prediction."""
        show_model(self.strategy, self.arena, self.backend, self.threads)


def show_model(strategy: Strategy, arena: Arena, backend: Backend, threads: int = 1) -> None:
    """Copy the current model to a backend, without prediction."""
    if backend.param_buffer.ctypes.data == arena.params.ctypes.data:
        return  # it computes with the arena's
    flat = arena.params
    if strategy.copies and arena.counters.load("command") == ControlCommand.TRAIN:
        flat = np.empty_like(flat)
        strategy.load(arena, flat, training=True, threads=threads)
    backend.copy_in(flat, threads)
