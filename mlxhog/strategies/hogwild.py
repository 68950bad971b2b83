"""Lock-free training: read, compute and add without asking anyone (Niu et al. 2011, Hogwild!).

With one worker nothing runs beside it, so this is serial SGD, bit for bit.

With `predict="own"` and several workers the gradient is evaluated where the parameters are
expected to be when it lands: while this worker computes, each of the other P - 1 applies about one
update, so the parameters move on by about (P - 1)/P of what they moved between this worker's last
two reads.
Related published method: DANA, arXiv:1907.11612 (there from the workers' momenta).
"""

from __future__ import annotations

import numpy as np

from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Float32, Grads
from mlxhog.data.ledger import NO_END, TicketState
from mlxhog.optim import gradients, updates
from mlxhog.strategies.strategy import Context, Idle, Lease, Outcome, Strategy


class Hogwild(Strategy):
    """Lock-free workers; also `serial`, which is this with one worker."""

    def worker(self, context: Context) -> HogwildWorker:
        """Prepare one worker."""
        return HogwildWorker(context)


class HogwildWorker:
    """Read, compute, add."""

    def __init__(self, context: Context, *, more_tickets: int = 0) -> None:
        """Prepare one worker; costs one more private copy of the parameters when predicting.

        Args:
            context: this worker's view of the run.
            more_tickets: that were taken of this call's beyond one for each step.
        """
        self.context = context
        arena, config = context.arena, context.config
        self._live = context.reads_live
        self._previous: Float32 | None = None
        if config.predict == "own" and context.workers > 1 and not self._live:
            self._previous = np.empty_like(arena.params)
            updates.snapshot(self._previous, arena.params)
        self._step_ahead = (context.workers - 1) / context.workers
        self._target = context.target(context.slot)
        self._version_read = 0
        end = arena.counters.load("end_ticket")
        self._end = end + more_tickets if end else NO_END

    def counts_step(self) -> bool:
        """Every batch is a step."""
        return True

    def claim(self) -> Lease | Idle:
        """Take any free ticket."""
        context = self.context
        if context.stopping() or context.used_up():
            return Idle.DONE
        if context.paused():
            return Idle.WAIT
        claim = context.ledger.claim(context.owner, self._end)
        if claim is None:
            return Idle.DONE if self._all_are_handed_out() else Idle.WAIT
        epoch, ticket = claim
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def _all_are_handed_out(self) -> bool:
        """Whether the last ticket of the budget is someone's; a dead worker's comes back yet."""
        ledger = self.context.ledger
        return ledger.state(*ledger.locate(self._end - 1)) != TicketState.FREE

    def read(self) -> None:
        """Snapshot or predicted snapshot; live reads need nothing."""
        context = self.context
        self._version_read = context.arena.counters.load("version")
        context.entry.version_read = self._version_read
        if self._live:
            return
        backend, params = context.backend, context.arena.params
        if self._previous is None:
            updates.snapshot(backend.inbox, params)
        else:
            updates.snapshot_predict(backend.inbox, params, self._previous, self._step_ahead)
        backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> Outcome:
        """Add this worker's optimizer step; other workers' steps may land in between."""
        context = self.context
        entry, counters, ledger = context.entry, context.arena.counters, context.ledger
        grads = self._own(grads)
        norm = gradients.global_norm(grads)
        entry.phase = Phase.APPLY
        ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
        finite = bool(np.isfinite(norm))
        if finite:
            self._step(grads, norm)
            entry.opt_step += 1
        version = counters.add("version", 1) if finite else counters.load("version")
        ledger.finish(lease.epoch, lease.ticket, context.owner)
        entry.ticket = -1
        return Outcome(applied=finite, staleness=version - self._version_read, version=version + 1)

    def _own(self, grads: Grads) -> Grads:
        """The part of the gradient that this worker writes."""
        return grads

    def _step(self, grads: Grads, norm: float) -> None:
        """Write the optimizer's step for a gradient of this norm."""
        self._add(grads, norm, self.context.entry.opt_step + 1)

    def _add(self, grads: Grads, norm: float, step: int) -> None:
        """Write a step, the `step`-th to go into these parameters' private state."""
        context = self.context
        context.optimizer.step(
            self._target,
            grads,
            lr=context.lr(),
            step=step,
            seed=self._version_read * 65_537 + context.slot,
            grad_scale=context.grad_scale(norm),
            shared_step=context.arena.counters.load("version") + 1,
        )
