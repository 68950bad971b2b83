"""A worker's training steps: from the ticket to the record."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from mlxhog.arena import control
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import MAX_NONFINITE, Phase
from mlxhog.backends.backend import Grads
from mlxhog.config.strategy import sparsify
from mlxhog.strategies import Context, Idle, Lease, WriteResult
from mlxhog.training.gradients import Gradients
from mlxhog.training.job import Job


class Computed(NamedTuple):
    """A gradient whose step is not added yet; times are of its read and its computation."""

    lease: Lease
    grads: Grads
    loss: float  # mean of the labels, in nats
    samples: int
    tokens: int
    labels: int  # that count
    n_bytes: int
    began_ns: int
    read_ns: int  # without waits
    compute_ns: int
    forward_ns: int  # of compute_ns; 0 if it was not measured
    wait_ns: int


class Written(NamedTuple):
    """A step that was added; `apply_ns` is without the waits for locks."""

    outcome: WriteResult
    ended_ns: int
    apply_ns: int
    wait_ns: int


class Steps:
    """Takes tickets, computes gradients and lets the strategy read and write."""

    def __init__(
        self, job: Job, context: Context, ring: control.Ring, gradients: Gradients
    ) -> None:
        """Build the strategy."""
        self.job, self.context, self.ring, self.gradients = job, context, ring, gradients
        self.strategy = context.strategy.worker(context)
        self._target = context.target(job.slot)

    def step(self) -> None:
        """Process one ticket from claim to record, or wait a moment if there is no ticket."""
        entry = self.context.entry
        # Before the claim, since a worker with a ticket must not be taken for one at rest.
        asked_ns, waited_ns = entry.beat(Phase.DATA), entry.wait_ns
        late_s, context = self.gradients.slowdown.late_s, self.context
        if entry.nonfinite_in_row >= MAX_NONFINITE:
            lease: Lease | Idle = Idle.DONE
        elif context.seconds() < late_s and context.training():  # delayed by the option `slow`
            lease = Idle.WAIT
        else:
            lease = self.strategy.claim()
        if isinstance(lease, Lease):
            waited_ns = entry.wait_ns - waited_ns
            busy_ns = self._take(lease)
            entry.other_ns += monotonic_ns() - asked_ns - busy_ns - waited_ns
            return
        self.context.settle()
        if lease is Idle.WAIT:
            waits_ns = entry.beat(Phase.WAITING)
            time.sleep(0.0002)
            entry.wait_ns += monotonic_ns() - waits_ns
        else:
            entry.beat(Phase.IDLE)
            time.sleep(0.002)

    def _take(self, lease: Lease) -> int:
        """Read, compute, write, record; returns the nanoseconds of the first three."""
        step = self._computed(lease)
        written = self._written(step)
        self.context.entry.apply_ns += written.apply_ns
        self._record(step, written)
        return written.ended_ns - step.began_ns

    def _computed(self, lease: Lease) -> Computed:
        """Read, and compute the gradient."""
        entry = self.context.entry
        batches = self.gradients.micro_batches(lease)
        number, waited_ns = entry.steps, entry.wait_ns
        began_ns = entry.beat(Phase.READ)
        self.strategy.read()
        read_ns, waited_ns = monotonic_ns(), entry.wait_ns - waited_ns
        entry.beat(Phase.COMPUTE)
        self._after_read()
        loss, grads = self.gradients.of(batches) if batches else (math.nan, {})
        self.gradients.slow_down(monotonic_ns() - read_ns, number, self.context.training)
        compute_ns = monotonic_ns() - read_ns
        share = self.gradients.backend.forward_share
        return Computed(
            lease=lease,
            grads=grads,
            loss=loss,
            samples=sum(len(batch.x) for batch in batches),
            tokens=sum(batch.n_tokens for batch in batches),
            labels=sum(batch.n_labels for batch in batches),
            n_bytes=sum(batch.n_bytes for batch in batches),
            began_ns=began_ns,
            read_ns=read_ns - began_ns - waited_ns,
            compute_ns=compute_ns,
            forward_ns=round((share or 0.0) * compute_ns),
            wait_ns=waited_ns,
        )

    def _after_read(self) -> None:
        """Before each gradient."""

    def _written(self, step: Computed) -> Written:
        """Add a step, and the lost-update probe."""
        entry = self.context.entry
        began_ns, waited_ns = monotonic_ns(), entry.wait_ns
        outcome = self.strategy.write(step.grads, step.lease, step.samples)
        if outcome.applied and self.context.strategy.probes:
            self._probe()  # all workers write it, unlike the parameters of disjoint blocks
        ended_ns, waited_ns = monotonic_ns(), entry.wait_ns - waited_ns
        # Threads of a worker may wait for locks at once, for longer together than this took.
        return Written(outcome, ended_ns, max(0, ended_ns - began_ns - waited_ns), waited_ns)

    def _record(self, step: Computed, written: Written) -> None:
        """Count a step that was added, and append its record."""
        entry, outcome = self.context.entry, written.outcome
        entry.read_ns += step.read_ns
        entry.compute_ns += step.compute_ns
        entry.forward_ns += step.forward_ns
        self._count(outcome, step.loss, step.tokens)
        self.ring.append(
            kind=control.RecordKind.STEP,
            worker=self.job.slot,
            version=outcome.version,
            t_ns=written.ended_ns,
            loss=step.loss,
            tokens=step.tokens,
            nats=step.loss * step.labels,
            n_bytes=step.n_bytes,
            staleness=outcome.staleness,
            read_s=step.read_ns / 1e9,
            compute_s=step.compute_ns / 1e9,
            apply_s=written.apply_ns / 1e9,
            wait_s=(step.wait_ns + written.wait_ns) / 1e9,
        )

    def _count(self, outcome: WriteResult, loss: float, tokens: int) -> None:
        """Add a step to this worker's entry and to the run's counters."""
        entry, counters = self.context.entry, self.context.arena.counters
        entry.steps += 1
        entry.tokens += tokens
        if tokens:
            entry.loss = loss
        if outcome.applied:
            entry.nonfinite_in_row = 0
            entry.staleness_sum += outcome.staleness
            entry.staleness_max = max(entry.staleness_max, outcome.staleness)
        else:
            entry.nonfinite_in_row = 0 if outcome.too_late else entry.nonfinite_in_row + 1
        counts = self.strategy.counts_step()
        if not outcome.applied and (counts or outcome.too_late):
            entry.dropped += 1  # one worker counts a step that all drop together
        if counts:
            counters.add("steps", 1)
        if counts or not outcome.too_late:  # else it was too late for a step of others
            counters.add("tokens", tokens)

    def _probe(self) -> None:
        """Add 1.0 to the probe in the way of parameter updates; missing counts are lost updates."""
        probe = self.context.arena.layout.probe
        scattered = sparsify(self.job.config) != "none"
        self._target.probe(probe.offset, probe.size, scattered=scattered)
        self.context.entry.probe_adds += 1
