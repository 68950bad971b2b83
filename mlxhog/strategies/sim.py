"""Simulated asynchrony: one process computes each gradient at parameters of a chosen age.

Step t takes the gradient of ticket t at the parameters after step t - tau, and adds it to the
newest. `--sim-staleness` is the rule of tau (`mlxhog.config.ages`). Each step belongs to a
simulated worker, which has its own optimizer state. So a run is a function of its configuration,
whatever the machine does meanwhile: with tau = 0 it is `serial`, and with `fixed:N` it is
`round_robin` with N + 1 processes, bit for bit.

With `predict=last` the copies are extrapolated by N steps like the last ones (`look_ahead.py`).

    segment                    dtype    meaning
    sim.after.0 .. sim.after.D float32  parameters after step k, of the last D + 1 steps: in k mod
                                        (D + 1), D being the largest tau; step 0 is the beginning
    sim.words                  uint8    line 0: [0] steps so far, [1] those before this call,
                                        [2] tokens of this call
                                        line 1 + k: [0] version of `sim.after.k`
                                        line 2 + D: journal (`control_words.py`)

The copies are in the arena, so a process that replaces a dead one continues its step, and a
checkpoint keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Grads
from mlxhog.config import strategies as choices
from mlxhog.config.ages import Course, SimulatedStaleness, SimulatedStep
from mlxhog.errors import ConfigError
from mlxhog.optim import updates
from mlxhog.strategies import look_ahead
from mlxhog.strategies.context import Context, Idle, Lease, WriteResult
from mlxhog.strategies.control_words import LINE, StepJournal, StepRecord, Words
from mlxhog.strategies.delays import Delays
from mlxhog.strategies.strategy import Strategy

_STEP, _FIRST, _TOKENS = range(3)


def check(workers: int) -> None:
    """Refuse a second process.

    Raises:
        ConfigError: there is one.
    """
    if workers > 1:
        raise ConfigError(
            f"strategy sim simulates its workers in one process, and workers asks for {workers}; "
            "name one, such as --workers mlx:cpu, or take the simulated strategy itself"
        )


class Sim(Strategy):
    """One process that simulates workers."""

    choice: choices.Sim

    numbered: ClassVar[bool] = True

    @property
    def fixed(self) -> str | None:
        """There is one process."""
        return "strategy sim simulates its workers in one process"

    @cached_property
    def rule(self) -> SimulatedStaleness:
        """The worker and the staleness of each step."""
        return self.choice.rule

    @property
    def slots(self) -> int:
        """One for each simulated worker, for its optimizer state."""
        return self.rule.workers

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {
            **{name: ("float32", PARAMETER_COPY) for name in self.kept_segments()},
            "sim.words": ("uint8", LINE * (3 + self.rule.most)),
        }

    def kept_segments(self) -> tuple[str, ...]:
        """The parameters after each of the last steps, and what looking ahead needs."""
        return (*self.copies(), *look_ahead.segments(self.config, self.in_flight))

    def copies(self) -> tuple[str, ...]:
        """Segments of the parameters after each of the last steps."""
        return tuple(f"sim.after.{k}" for k in range(self.in_flight))

    @property
    def in_flight(self) -> int:
        """Most gradients that are computed at once: a gradient, and the steps it does not see."""
        return self.rule.most + 1

    def state_slots(self, arena: Arena) -> tuple[int, ...]:
        """Those of the simulated workers."""
        return tuple(range(1, self.slots + 1))

    def worker(self, context: Context) -> SimWorker:
        """Prepare the process."""
        return SimWorker(context, self)

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Begin with the arena's parameters, or where it was left off."""
        words, version = Words(arena.segment("sim.words")), arena.counters.load("version")
        names = self.copies()
        # Another rule keeps other copies: the age of a gradient begins at 0 again.
        continues = position is not None and len(position["versions"]) == len(names)
        if position is None or not continues:
            step, versions = 0, [version] * len(names)
            updates.snapshot(arena.segment(names[0]), arena.params)
        else:
            step, versions = position["step"], position["versions"]
        words.store(0, _STEP, step)
        words.store(0, _FIRST, step)
        for k, own in enumerate(versions):
            words.store(1 + k, 0, own)

    def position(self, arena: Arena) -> dict[str, Any]:
        """Number of steps that are done, and the versions of all copies."""
        words = Words(arena.segment("sim.words"))
        return {
            "step": words.load(0, _STEP),
            "versions": [words.load(1 + k, 0) for k in range(self.in_flight)],
        }

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Steps of this call."""
        words = Words(arena.segment("sim.words"))
        return words.load(0, _STEP) - words.load(0, _FIRST)

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the step of a process that died after applying it."""
        words = Words(arena.segment("sim.words"))
        step = words.load(0, _STEP)
        number = arena.counters.load("first_ticket") + step - words.load(0, _FIRST)
        record = self.journal(words).read()
        if record.ticket == number and ledger.state(*ledger.locate(number)) == TicketState.DONE:
            self.take_in(arena, words, step, record)
            words.store(0, _STEP, step + 1)
        super().settle(arena, ledger)

    def journal(self, words: Words) -> StepJournal:
        """The process's journal."""
        return StepJournal(words, 2 + self.rule.most)

    def simulated(self, step: int) -> SimulatedStep:
        """The worker and the staleness of a step."""
        return self._course.at(step)

    def since(self, step: int) -> int:
        """Steps after the same worker's previous one up to this, this one included."""
        worker = self.simulated(step).worker
        earlier = range(step - 1, -1, -1)
        return next((step - k for k in earlier if self.simulated(k).worker == worker), step + 1)

    @cached_property
    def _course(self) -> Course:
        return self.rule.course(self.config.seed)

    def copy_of(self, step: int) -> int:
        """Index of the copy of the parameters after `step` steps."""
        return step % self.in_flight

    def take_in(self, arena: Arena, words: Words, step: int, record: StepRecord) -> None:
        """Store the counts of a step's record, and copy; doing it twice changes nothing."""
        arena.workers.entry(self.simulated(step).worker + 1).opt_step = record.opt_step
        arena.counters.store("version", record.version)
        words.store(0, _TOKENS, record.tokens)
        copy = self.copy_of(step + 1)
        reader = look_ahead.reader(arena, self.config, self.in_flight)
        reader.read(arena.segment(f"sim.after.{copy}"))
        words.store(1 + copy, 0, record.version)


class SimWorker:
    """The process that takes the steps of all simulated workers."""

    def __init__(self, context: Context, strategy: Sim) -> None:
        """Prepare it."""
        self.context, self._strategy = context, strategy
        arena = context.arena
        self._words = Words(arena.segment("sim.words"))
        self._journal = strategy.journal(self._words)
        self._copies = [arena.segment(name) for name in strategy.copies()]
        steps = look_ahead.record(arena, strategy.config, strategy.in_flight)
        self._targets = [
            replace(context.target(slot), record=steps) for slot in strategy.state_slots(arena)
        ]
        self._delays = Delays(context, workers=strategy.rule.workers)
        self._first = self._words.load(0, _FIRST)
        self._step = 0
        self._read_from = 0
        self._leased = False

    def counts_step(self) -> bool:
        """Every batch is a step."""
        return True

    def claim(self) -> Lease | Idle:
        """Lease the next ticket."""
        context, limit = self.context, self.context.step_limit
        step = self._words.load(0, _STEP)
        over = limit is not None and step - self._first >= limit
        if over or context.stopping() or context.used_up():
            return Idle.DONE
        if context.paused():
            return Idle.WAIT
        number = context.arena.counters.load("first_ticket") + step - self._first
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and context.ledger.state(epoch, ticket) != TicketState.DONE:
            return Idle.WAIT  # its holder has just died, and it comes back
        self._step = step
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def read(self) -> None:
        """Load the parameters of the age of this step."""
        context, strategy = self.context, self._strategy
        age = strategy.simulated(self._step).staleness
        self._read_from = strategy.copy_of(self._step - age)
        context.entry.version_read = self._words.load(1 + self._read_from, 0)
        copy = self._copies[self._read_from]
        updates.snapshot(context.backend.inbox, copy, threads=context.threads)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step to the newest parameters, and keep a copy of the result."""
        context, strategy, words = self.context, self._strategy, self._words
        entry, ledger = context.entry, context.ledger
        late = False
        entry.phase = Phase.APPLY
        context.marks.begin_update()
        if self._leased:  # else its predecessor died after the step
            staleness = context.arena.counters.load("version") - entry.version_read
            grads = self._delays.compensated(grads)
            norm = context.norm(grads)
            late = self._delays.is_too_late(staleness)
            lr = self._lr(staleness)
            record = self._record(lease, bool(np.isfinite(norm)) and not late, samples)
            self._journal.write(record)
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if record.applied:
                self._apply(grads, norm, lr, record)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        record = self._journal.read()
        strategy.take_in(context.arena, words, self._step, record)
        context.marks.end_update()
        entry.ticket = -1
        words.store(0, _STEP, self._step + 1)
        staleness = max(0, record.version - record.applied - entry.version_read)
        return WriteResult(record.applied, staleness, record.version, too_late=late)

    def _record(self, lease: Lease, applied: bool, samples: int) -> StepRecord:
        """Counts after this step."""
        context = self.context
        worker = self._strategy.simulated(self._step).worker
        return StepRecord(
            opt_step=context.arena.workers.entry(worker + 1).opt_step + applied,
            version=context.arena.counters.load("version") + applied,
            tokens=self._words.load(0, _TOKENS) + samples * context.config.seq_len,
            applied=applied,
            ticket=lease.epoch * context.ledger.n + lease.ticket,
        )

    def _lr(self, staleness: int) -> float:
        """Step size of this step, from the counts of the steps before it."""
        context = self.context
        progress = context.budget.progress(
            steps=self._step - self._first,
            tokens=self._words.load(0, _TOKENS),
            seconds=context.seconds(),
        )
        lr = context.schedule(progress, context.arena.counters.load("version"))
        return self._delays.rate(lr, staleness)

    def _apply(self, grads: Grads, norm: float, lr: float, record: StepRecord) -> None:
        context = self.context
        worker = self._strategy.simulated(self._step).worker
        staleness = context.arena.counters.load("version") - context.entry.version_read
        context.optimizer.step(
            self._targets[worker],
            grads,
            lr=lr,
            step=record.opt_step,
            seed=context.entry.version_read * 65_537 + worker + 1,
            grad_scale=context.grad_scale(norm),
            shared_step=context.shared_steps() + 1,
            feedback=self._delays.feedback(staleness, since=self._strategy.since(self._step)),
        )
