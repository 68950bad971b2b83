"""A worker's training steps: from the ticket to the record."""

from __future__ import annotations

import math
import time

import numpy as np

from mlxhog.arena import control
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.config.strategy import sparsify
from mlxhog.optim import updates
from mlxhog.strategies import Context, Idle, Lease, WriteResult
from mlxhog.training.gradients import Gradients
from mlxhog.training.job import Job


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
        if entry.nonfinite_in_row >= self.job.config.max_nonfinite:
            lease: Lease | Idle = Idle.DONE
        else:
            lease = Idle.WAIT if self._is_late() else self.strategy.claim()
        if lease is Idle.WAIT:
            waits_ns = entry.beat(Phase.WAITING)
            time.sleep(0.0002)
            entry.wait_ns += monotonic_ns() - waits_ns
        elif isinstance(lease, Idle):
            entry.beat(Phase.IDLE)
            time.sleep(0.002)
        else:
            self._take(lease, asked_ns, waited_ns)

    def _take(self, lease: Lease, asked_ns: int, waited_ns: int) -> None:
        """Read, compute, write, record.

        Args:
            lease: of the batch.
            asked_ns: when the worker asked for it.
            waited_ns: its waits until then, over the whole run.
        """
        context, entry = self.context, self.context.entry
        batches = self.gradients.micro_batches(lease)
        samples = sum(len(batch.x) for batch in batches)
        tokens = sum(batch.n_tokens for batch in batches)
        labels = sum(batch.n_labels for batch in batches)
        waited_before = entry.wait_ns
        began_ns = entry.beat(Phase.READ)
        self.strategy.read()
        read_ns, waited_to_read = monotonic_ns(), entry.wait_ns
        entry.beat(Phase.COMPUTE)
        loss, grads = self.gradients.of(batches) if batches else (math.nan, {})
        self.gradients.slow_down(monotonic_ns() - read_ns, entry.steps, context.training)
        computed_ns = monotonic_ns()
        outcome = self.strategy.write(grads, lease, samples)
        if outcome.applied and context.strategy.probes:
            self._probe()  # all workers write it, unlike the parameters of disjoint blocks
        applied_ns = monotonic_ns()
        reading_ns = read_ns - began_ns - (waited_to_read - waited_before)
        # Threads of a worker may wait for locks at once, for longer together than this took.
        applying_ns = max(0, applied_ns - computed_ns - (entry.wait_ns - waited_to_read))
        entry.read_ns += reading_ns
        entry.compute_ns += computed_ns - read_ns
        if (share := self.gradients.backend.forward_share) is not None:
            entry.forward_ns += round(share * (computed_ns - read_ns))
        entry.apply_ns += applying_ns
        self._count(outcome, loss, tokens)
        self.ring.append(
            kind=control.RecordKind.STEP,
            worker=self.job.slot,
            version=outcome.version,
            t_ns=applied_ns,
            loss=loss,
            tokens=tokens,
            nats=loss * labels,
            n_bytes=sum(batch.n_bytes for batch in batches),
            staleness=outcome.staleness,
            read_s=reading_ns / 1e9,
            compute_s=(computed_ns - read_ns) / 1e9,
            apply_s=applying_ns / 1e9,
            wait_s=(entry.wait_ns - waited_before) / 1e9,
        )
        waited_to_claim = waited_before - waited_ns
        entry.other_ns += monotonic_ns() - asked_ns - (applied_ns - began_ns) - waited_to_claim

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

    def _is_late(self) -> bool:
        """Whether the option `slow` still delays this worker's first batch."""
        context = self.context
        return context.seconds() < self.gradients.slowdown.late_s and context.training()

    def _probe(self) -> None:
        """Add 1.0 to the probe in the way of parameter updates; missing counts are lost updates."""
        probe, metal = self.context.arena.probe, self._target.metal
        if metal is None:
            scattered = sparsify(self.job.config) != "none"
            updates.add_probe(self._target, probe, scattered=scattered)
        else:
            offset = self.context.arena.layout.probe.offset
            metal.add(offset, np.ones(probe.size, np.float32))
        self.context.entry.probe_adds += 1
