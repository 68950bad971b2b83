"""A worker's training steps: from the ticket to the record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np

from mlxhog.arena import control
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Grads
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.data.batch import Batch, joined
from mlxhog.machine.workers import GPU_BACKENDS
from mlxhog.optim import updates
from mlxhog.strategies import Context, Idle, Lease, Outcome
from mlxhog.training import evenness
from mlxhog.training.job import Job

WARM_UP_TOKENS = 64
FEW_COST = 1.7
"""So many times their share of a gradient such few tokens take on a CPU: 1.6 to 1.8 were measured,
of 5 and 30 million parameters and in either framework."""
LONGEST_NAP_S = 0.01  # of a worker that is slowed down, before it looks whether the run goes on


class Steps:
    """Takes tickets, computes gradients and lets the strategy read and write."""

    def __init__(self, job: Job, context: Context, ring: control.Ring) -> None:
        """Open the training data and build the strategy."""
        self.job, self.context, self.ring = job, context, ring
        self.strategy = context.strategy.worker(context)
        self._batches = job.setup.batches()
        self._target = context.target(job.slot)
        self._measured = False
        self._slowdown = parse_slowdowns(job.config.slow).get(context.rank, Slowdown())

    def warm_up(self) -> None:
        """One gradient nobody uses, so that lazy set-up in the framework is not timed as a step.

        A GPU compiles for the shape of a step. A CPU does not: a few tokens do, of a model that may
        take a minute for a step.
        """
        print(f"micro-batch {self.job.micro_batch}", flush=True)
        self.context.copy_to_inbox()
        self.context.backend.loss_and_grads(self._few())

    def _few(self) -> Batch:
        """A small part of a step, of whose shape a GPU has to be."""
        batch = self._batches.example().part(0, self.job.micro_batch)
        if self.job.spec.backend in GPU_BACKENDS:
            return batch
        return batch.part(0, 1).beginning(WARM_UP_TOKENS)

    def measure(self) -> None:
        """Time gradients while all others do that the run begins with, once; see `evenness`."""
        context, times = self.context, list[float]()
        if self._measured or context.rank >= context.workers:
            return
        limit_s, expected_s = evenness.limit_s(self.job.budget.seconds), self._expected_s()
        if evenness.LEAST * expected_s > limit_s:
            limit_s = 0.0
        while self._asked_to_measure() and not evenness.is_enough(len(times), sum(times), limit_s):
            batches = list(self._micro_batches(Lease(0, len(times) % self._batches.n_tickets)))
            began_ns = monotonic_ns()
            context.entry.beat(Phase.COMPUTE)
            self._loss_and_grads(batches)
            self._slow_down(monotonic_ns() - began_ns, len(times), self._asked_to_measure)
            times.append((monotonic_ns() - began_ns) / 1e9)
        self._measured = True
        evenness.Paces(context.arena, context.workers).note(context.rank, expected_s, times)

    def _expected_s(self) -> float:
        """About how long a gradient takes, by a few tokens of one."""
        few, whole = self._few(), self._batches.example()
        began_ns = monotonic_ns()
        self.context.entry.beat(Phase.COMPUTE)
        self.context.backend.loss_and_grads(few)
        few_s = (monotonic_ns() - began_ns) / 1e9
        times = whole.x.size / few.x.size
        if self.job.spec.backend not in GPU_BACKENDS:
            times = max(1.0, times / FEW_COST)
        factor = self._slowdown.factor_of(self.job.config.seed, self.context.rank, 0)
        return factor * few_s * times

    def _asked_to_measure(self) -> bool:
        return self.context.arena.counters.load("command") == Command.MEASURE

    def step(self) -> None:
        """Take one ticket from claim to record, or wait a moment where there is none."""
        entry = self.context.entry
        # Before the claim: no worker that has a ticket may look as if it held still.
        entry.beat(Phase.DATA)
        if entry.nonfinite_in_row >= self.job.config.max_nonfinite:
            lease: Lease | Idle = Idle.DONE
        else:
            lease = Idle.WAIT if self._is_late() else self.strategy.claim()
        if lease is Idle.WAIT:
            entry.beat(Phase.WAITING)
            time.sleep(0.0002)
        elif isinstance(lease, Idle):
            entry.beat(Phase.IDLE)
            time.sleep(0.002)
        else:
            self._take(lease)

    def gradient(self, lease: Lease) -> Grads:
        """The gradient of a batch at what the strategy has read."""
        return self._loss_and_grads(list(self._micro_batches(lease)))[1]

    def _take(self, lease: Lease) -> None:
        """Read, compute, write, record."""
        entry = self.context.entry
        batches = list(self._micro_batches(lease))
        samples = sum(len(batch.x) for batch in batches)
        tokens = sum(batch.n_tokens for batch in batches)
        labels = sum(batch.n_labels for batch in batches)
        waited_before = entry.wait_ns
        began_ns = monotonic_ns()
        entry.beat(Phase.READ)
        self.strategy.read()
        read_ns, waited_to_read = monotonic_ns(), entry.wait_ns
        entry.beat(Phase.COMPUTE)
        loss, grads = self._loss_and_grads(batches) if batches else (math.nan, {})
        self._slow_down(monotonic_ns() - read_ns, entry.steps, self.context.training)
        computed_ns = monotonic_ns()
        outcome = self.strategy.write(grads, lease, samples)
        if outcome.applied and self.context.strategy.probes:
            self._probe()  # which all workers write, as they do no parameter of disjoint blocks
        applied_ns = monotonic_ns()
        reading_ns = read_ns - began_ns - (waited_to_read - waited_before)
        applying_ns = applied_ns - computed_ns - (entry.wait_ns - waited_to_read)
        entry.read_ns += reading_ns
        entry.compute_ns += computed_ns - read_ns
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

    def _count(self, outcome: Outcome, loss: float, tokens: int) -> None:
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
            entry.dropped += 1  # of workers that drop a step together one says so
        if counts:
            counters.add("steps", 1)
        if counts or not outcome.too_late:  # else it came too late for a step of others
            counters.add("tokens", tokens)

    def _micro_batches(self, lease: Lease) -> Iterator[Batch]:
        """The lease's sequences, `micro_batch` at a time."""
        if lease.parts is None:
            parts = [self._batches.at(lease.epoch, lease.ticket)]
        else:
            every = (
                self._batches.at(part.epoch, part.ticket).part(part.begin, part.end)
                for part in lease.parts
            )
            parts = [part for part in every if len(part.x)]  # an epoch's last ticket may have fewer
        if parts:
            batch, rows = joined(parts), self.job.micro_batch
            for begin in range(0, len(batch.x), rows):
                yield batch.part(begin, begin + rows)

    def _is_late(self) -> bool:
        """Whether the option `slow` keeps this worker from its first batch for now."""
        context = self.context
        return context.seconds() < self._slowdown.late_s and context.training()

    def _slow_down(self, spent_ns: int, step: int, goes_on: Callable[[], bool]) -> None:
        """Make a gradient take as many times as long as the option `slow` says, or until the end.

        Args:
            spent_ns: that it has taken.
            step: its number among this worker's.
            goes_on: whether the end has not come yet.
        """
        factor = self._slowdown.factor_of(self.job.config.seed, self.context.rank, step)
        end_ns = monotonic_ns() + (factor - 1) * spent_ns
        while (rest_s := (end_ns - monotonic_ns()) / 1e9) > 0 and goes_on():
            self.context.entry.beat()
            time.sleep(min(rest_s, LONGEST_NAP_S))

    def _loss_and_grads(self, batches: list[Batch]) -> tuple[float, Grads]:
        """Mean loss and gradient over the micro-batches, each weighted by its counted labels."""
        if len(batches) == 1:
            return self.context.backend.loss_and_grads(batches[0])
        total = sum(batch.n_labels for batch in batches)
        mean = updates.GradientSum()
        loss = 0.0
        for batch in batches:
            share = batch.n_labels / max(total, 1)
            part, grads = self.context.backend.loss_and_grads(batch)
            self.context.entry.beat()
            loss += share * part
            mean.add(grads, share)
        return loss, mean.grads()

    def _probe(self) -> None:
        """Add 1.0 to the probe as the parameters are added to: what it lacks later was lost."""
        probe, metal = self.context.arena.probe, self._target.metal
        if metal is None:
            scattered = self.job.config.sparsify != "none"
            updates.add_probe(self._target, probe, scattered=scattered)
        else:
            offset = self.context.arena.layout.probe.offset
            metal.add(offset, np.ones(probe.size, np.float32))
        self.context.entry.probe_adds += 1
