"""Lock-free training: read, compute and add without waiting (Niu et al. 2011, Hogwild!).

With one worker nothing runs beside it, so this is serial SGD, bit for bit.

Tables of n-grams are read and written row by row; neither looking ahead nor the options of late
gradients apply to them, since updates rarely meet there.

With several workers a gradient is taken where the parameters are expected to be when it lands, as
`--predict` says (`look_ahead.py`); a worker looks up their number before every read.
`--staleness-lr` and related options change the steps of late gradients (`delays.py`).

With `--overlap` a worker reads for its next gradient before it adds its last step, beside which it
computes that gradient (`mlxhog.training.steps`). It holds two tickets then: if it dies, the
ledger gives out both again, or counts the one whose step was being added as torn.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

import numpy as np

from mlxhog.arena.ledger import NO_END, TicketState
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Grads
from mlxhog.optim import tables
from mlxhog.strategies import look_ahead
from mlxhog.strategies.context import Context, Idle, Lease, StrategyWorker, WriteResult
from mlxhog.strategies.delays import Delays
from mlxhog.strategies.strategy import Strategy


class HogwildWorker(StrategyWorker):
    """Read, compute, add."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._state = context.entry  # whose optimizer's steps it counts
        arena = context.arena
        self._live = context.backend.inbox.ctypes.data == arena.params.ctypes.data
        self._follow(context.live_workers)
        self._version_read = 0
        self._delays = Delays(context)
        self._end = arena.counters.load("end_ticket") or NO_END

    def _follow(self, workers: int) -> None:
        context = self.context
        self._workers = workers
        if workers == 1:  # steps recorded now would be old when others join
            for name in look_ahead.recorded(context.arena, context.config):
                context.arena.segment(name).fill(0.0)
        self._reader = look_ahead.reader(context.arena, context.config, workers)
        self._target = context.target(context.slot)

    def claim(self) -> Lease | Idle:
        """Take any free ticket."""
        context = self.context
        if context.stopping() or context.used_up():
            return Idle.DONE
        if context.paused():
            return Idle.WAIT
        end = self._end
        if stream := context.arena.counters.load("stream_end"):
            end = min(end, stream - 1)
        claim = context.ledger.claim(context.owner, end)
        if claim is None:
            return Idle.DONE if self._all_are_handed_out(end) else Idle.WAIT
        epoch, ticket = claim
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def _all_are_handed_out(self, end: int) -> bool:
        """Whether the last ticket before `end` is taken; a dead worker's may come back later."""
        ledger = self.context.ledger
        return not end or ledger.state(*ledger.locate(end - 1)) != TicketState.FREE

    def read(self) -> None:
        """Take a snapshot, extrapolated if so chosen; live reads need none."""
        context = self.context
        if (workers := context.live_workers) != self._workers:
            self._follow(workers)
        self._version_read = context.arena.counters.load("version")
        context.entry.version_read = self._version_read
        if self._live:
            return
        self._reader.read(context.backend.inbox, context.threads)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add this worker's optimizer step; other workers' steps may land in between.

        The staleness is read once, before the step: the reported one is that of the step size.
        """
        context = self.context
        entry, counters, ledger = context.entry, context.arena.counters, context.ledger
        grads, rows = tables.parted(grads, context.tables)
        grads = self._delays.compensated(self.corrected(grads))
        norm = context.norm(grads)
        entry.phase = Phase.APPLY
        ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
        staleness = counters.load("version") - self._version_read
        late = self._delays.is_too_late(staleness)
        applied = bool(np.isfinite(norm)) and not late
        context.marks.begin_update()
        if applied:
            self._step(grads, norm, staleness)
            if context.tables is not None:
                seed = self._version_read * 65_537 + context.slot
                context.tables.step(rows, lr=context.table_lr(context.lr()), seed=seed)
            self._state.opt_step += 1
        version = counters.add("version", int(applied)) + applied
        context.marks.end_update()
        ledger.finish(lease.epoch, lease.ticket, context.owner)
        entry.ticket = -1
        self._reader.landed(staleness)
        return WriteResult(applied, staleness, version, too_late=late)

    def corrected(self, grads: Grads) -> Grads:
        """The gradient of the step, or the part of it that the worker writes."""
        return grads

    def _step(self, grads: Grads, norm: float, staleness: int) -> None:
        self._add(grads, norm, staleness, self._state.opt_step + 1)

    def _add(self, grads: Grads, norm: float, staleness: int, step: int) -> None:
        context = self.context
        context.optimizer.step(
            self._target,
            grads,
            lr=self._delays.rate(context.lr(), staleness),
            step=step,
            seed=self._version_read * 65_537 + context.slot,
            grad_scale=context.grad_scale(norm),
            shared_step=context.shared_steps() + 1,
            feedback=self._delays.feedback(staleness, since=staleness + 1),
        )


class OverlappedWorker(HogwildWorker):
    """Reads for its next gradient before it adds the step of the last one.

    A step is late by the worker's own last one, too, which counts in its staleness.

    Concurrency: `write` may run in another thread than the others, but beside none of them.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._reads = deque[int]()  # versions of reads whose steps are not added, the oldest first

    def read(self) -> None:
        """Take a snapshot, which has no part of the steps that this worker has not added."""
        super().read()
        self._reads.append(self._version_read)

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Add the step of the oldest gradient."""
        entry, self._version_read = self.context.entry, self._reads.popleft()
        held = entry.ticket
        outcome = super().write(grads, lease, samples)
        if held != lease.ticket:  # that of the next gradient
            entry.ticket = held
        return outcome


class Hogwild(Strategy):
    """Lock-free workers; also `serial`, which is this with one worker.

    No worker waits for another, so workers may join and leave during the run: a batch belongs to
    the worker that takes its ticket.
    """

    Worker: ClassVar[type[Any]] = HogwildWorker
    carries_tables: ClassVar[bool] = True

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """Segments for looking ahead."""
        return look_ahead.segments(self.config, self.slots)

    def kept_segments(self) -> tuple[str, ...]:
        """Segments for looking ahead."""
        return tuple(look_ahead.segments(self.config, self.workers))

    def worker(self, context: Context) -> StrategyWorker:
        """Prepare one worker."""
        if self.config.overlap and type(self).Worker is HogwildWorker:
            return OverlappedWorker(context)
        return super().worker(context)
