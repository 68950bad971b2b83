"""A worker's training steps: from the ticket to the gradient, the update and the record.

With `--overlap` each update is applied while the worker computes its next gradient:

    this thread   read 1 | compute 1 | read 2 | compute 2 ..... | read 3 | compute 3
    its helper                                | apply 1         |        | apply 2

While a GPU computes, the CPU does the norm, the optimizer and the write. A worker reads first, so
its snapshot excludes the pending update: with one worker each gradient is exactly one update stale.
It never reads while its own update is applied, nor applies two at once. Rows of n-gram embedding
tables alone are read within the gradient, and may have that update already. Without a next batch,
and before anything but a step (an evaluation, a pause, the end), the worker settles: it applies the
pending update.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

from mlxhog.arena import Arena, control
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import MAX_NONFINITE, Entry, WorkerPhase
from mlxhog.backends.backend import Backend, Grads
from mlxhog.base import darwin
from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.data.batch import Batch, joined
from mlxhog.errors import ConfigError
from mlxhog.optim.gradients import GradientSum
from mlxhog.strategies import BatchSize, Idle, Lease, WriteResult
from mlxhog.strategies.context import Context, show_model
from mlxhog.strategies.hogwild import HogwildWorker
from mlxhog.training.plan.job import Job

WARM_UP_TOKENS = 64
MAX_NAP_S = 0.01  # sleep of a straggler between checks whether the run continues


def mean_gradient(
    backend: Backend, batches: Sequence[Batch], beat: Callable[[], object] = lambda: None
) -> tuple[float, Grads]:
    """Mean loss and gradient of some batches, each weighted by its targets.

    `beat` is called after each of several.
    """
    if len(batches) == 1:
        return backend.loss_and_grads(batches[0])
    total = sum(batch.n_labels for batch in batches)
    mean, loss = GradientSum(), 0.0
    for batch in batches:
        share = batch.n_labels / max(total, 1)
        part, grads = backend.loss_and_grads(batch)
        beat()
        loss += share * part
        mean.add(grads, share)
    return loss, mean.grads()


class Gradients:
    """Computes the gradients of one worker; they need the model but no strategy."""

    def __init__(self, job: Job, arena: Arena, entry: Entry, backend: Backend) -> None:
        self._job, self._arena, self._entry, self.backend = job, arena, entry, backend
        self._batches, self._rank = job.plan.batches(), job.slot - 1
        self.slowdown = parse_slowdowns(job.config.inject_stragglers).get(self._rank, Slowdown())

    def micro_batches(self, lease: Lease) -> list[Batch]:
        """The lease's sequences, `micro_batch` at a time."""
        if lease.parts is None:
            parts = [self._batch(lease.epoch, lease.ticket)]
        else:  # an epoch's last ticket may have fewer sequences
            every = (
                self._batch(one.epoch, one.ticket).part(one.begin, one.end) for one in lease.parts
            )
            parts = [part for part in every if len(part.x)]
        if not parts:
            return []
        batch, rows = joined(parts), self._job.micro_batch
        return [batch.part(begin, begin + rows) for begin in range(0, len(batch.x), rows)]

    def _batch(self, epoch: int, ticket: int) -> Batch:
        """The batch of a ticket; in a cluster, in an order of this machine's own."""
        if self._job.plan.sidecar is not None:
            from mlxhog.cluster.outer_state import own_epochs

            epoch += own_epochs(self._arena)
        return self._batches.at(epoch, ticket)

    def of(self, batches: list[Batch]) -> tuple[float, Grads]:
        """Mean loss and gradient over the micro-batches, each weighted by its targets."""
        return mean_gradient(self.backend, batches, self._entry.beat)

    def slow_down(self, spent_ns: int, step: int, continues: Callable[[], bool]) -> None:
        """Sleep as `inject_stragglers` says of this step, at most until the run ends."""
        factor = self.slowdown.factor_of(self._job.config.seed, self._rank, step)
        end_ns = monotonic_ns() + (factor - 1) * spent_ns
        while (rest_s := (end_ns - monotonic_ns()) / 1e9) > 0 and continues():
            self._entry.beat()
            time.sleep(min(rest_s, MAX_NAP_S))

    def warm_up(self) -> None:
        """Compute an unused gradient, so that no step is timed with the framework's lazy set-up.

        A GPU compiles for the shape of a step. On a CPU a few tokens suffice, and are faster.
        """
        print(f"micro-batch {self._job.micro_batch}", flush=True)
        show_model(self._job.plan.strategy, self._arena, self.backend)
        batch = self._batches.example().part(0, self._job.micro_batch)
        if self._job.spec.backend not in GPU_BACKENDS:
            batch = batch.part(0, 1).beginning(WARM_UP_TOKENS)
        self.backend.loss_and_grads(batch)


@dataclass
class WorkerStep:
    """A step of a worker: its gradient, then the outcome of its update."""

    lease: Lease
    batches: list[Batch]  # micro-batches of the ticket's sequences
    began_ns: int  # begin of its read
    grads: Grads = field(default_factory=dict)
    loss: float = math.nan  # mean nats of the targets
    read_ns: int = 0  # times of read, gradient and write are without waits
    compute_ns: int = 0
    forward_ns: int = 0  # of `compute_ns`; 0 if it was not measured
    wait_ns: int = 0  # for others
    apply_ns: int = 0
    ended_ns: int = 0
    outcome: WriteResult | None = None

    @cached_property
    def size(self) -> BatchSize:
        """What the gradient is computed from."""
        return BatchSize(
            sequences=sum(len(one.x) for one in self.batches),
            tokens=sum(one.n_tokens for one in self.batches),
            labels=sum(one.n_labels for one in self.batches),
        )


class Steps:
    """Claims tickets, computes gradients and lets the strategy read and write."""

    def __init__(
        self, job: Job, context: Context, ring: control.Ring, gradients: Gradients
    ) -> None:
        self.job, self.context, self.ring, self.gradients = job, context, ring, gradients
        self.strategy = context.strategy.worker_class()(context)
        self._target = context.target(job.slot)

    def step(self) -> None:
        """Process one ticket from claim to record, or wait a moment if there is no ticket."""
        entry, context, delay_s = self.context.entry, self.context, self.gradients.slowdown.delay_s
        # Before the claim, since a worker with a ticket must not be taken for a quiesced one.
        asked_ns, waited_ns = entry.beat(WorkerPhase.DATA), entry.wait_ns
        if entry.nonfinite_in_row >= MAX_NONFINITE:
            lease: Lease | Idle = Idle.DONE
        elif context.clock.seconds() < delay_s and context.training():  # by `inject_stragglers`
            lease = Idle.WAIT
        else:
            lease = self.strategy.claim()
        if isinstance(lease, Lease):
            waited_ns = entry.wait_ns - waited_ns
            busy_ns = self._process(lease)
            entry.other_ns += monotonic_ns() - asked_ns - busy_ns - waited_ns
            return
        self.context.settle()
        if lease is Idle.WAIT:
            waits_ns = entry.beat(WorkerPhase.WAITING)
            time.sleep(0.0002)
            entry.wait_ns += monotonic_ns() - waits_ns
        else:
            entry.beat(WorkerPhase.IDLE)
            time.sleep(0.002)

    def _process(self, lease: Lease) -> int:
        """Process a ticket; returns the nanoseconds of all but the record of its step."""
        step = self._computed(lease)
        self._write(step)
        self.context.entry.apply_ns += step.apply_ns
        self._record(step)
        return step.ended_ns - step.began_ns

    def _computed(self, lease: Lease) -> WorkerStep:
        entry, batches = self.context.entry, self.gradients.micro_batches(lease)
        number, waited_ns = entry.steps, entry.wait_ns
        step = WorkerStep(lease, batches, began_ns=entry.beat(WorkerPhase.READ))
        self.strategy.read()
        read_ns, step.wait_ns = monotonic_ns(), entry.wait_ns - waited_ns
        step.read_ns = read_ns - step.began_ns - step.wait_ns
        entry.beat(WorkerPhase.COMPUTE)
        self._after_read()
        if batches:
            step.loss, step.grads = self.gradients.of(batches)
        self.gradients.slow_down(monotonic_ns() - read_ns, number, self.context.training)
        step.compute_ns = monotonic_ns() - read_ns
        step.forward_ns = round((self.gradients.backend.forward_share or 0.0) * step.compute_ns)
        return step

    def _after_read(self) -> None:
        """Before each gradient."""

    def _write(self, step: WorkerStep) -> int:
        """Apply an update, and the lost-update probe; returns the nanoseconds of waits for locks.

        The probe gets 1.0 as parameters get their updates; missing counts are lost updates.
        Each worker stops at its share of 2^24, where float32 stops counting.
        """
        entry = self.context.entry
        began_ns, waited_ns = monotonic_ns(), entry.wait_ns
        step.outcome = self.strategy.write(step.grads, step.lease, step.size)
        layout = self.context.arena.layout
        is_exact = entry.probe_adds < (1 << 24) // layout.max_workers
        if step.outcome.applied and self.context.strategy.probes and is_exact:
            probe = layout.probe
            scattered = self.context.strategy.sparsify != "none"
            # All workers write it, unlike the parameters of disjoint blocks.
            self._target.probe(probe.offset, probe.size, scattered=scattered)
            entry.probe_adds += 1
        step.ended_ns, waited_ns = monotonic_ns(), entry.wait_ns - waited_ns
        step.wait_ns += waited_ns
        # Threads of a worker may wait for locks at once, for longer together than this took.
        step.apply_ns = max(0, step.ended_ns - began_ns - waited_ns)
        return waited_ns

    def _record(self, step: WorkerStep) -> None:
        """Count a step in this worker's entry and the run's counters, and append its record."""
        entry, outcome, tokens = self.context.entry, step.outcome, step.size.tokens
        assert outcome is not None
        entry.read_ns += step.read_ns
        entry.compute_ns += step.compute_ns
        entry.forward_ns += step.forward_ns
        entry.steps += 1
        entry.tokens += tokens
        if tokens:
            entry.loss = step.loss
        if outcome.applied:
            entry.nonfinite_in_row = 0
            entry.staleness_sum += outcome.staleness
            entry.staleness_max = max(entry.staleness_max, outcome.staleness)
        elif not outcome.is_part:
            entry.nonfinite_in_row = 0 if outcome.is_stale else entry.nonfinite_in_row + 1
        counts, counters = self.strategy.counts_step(), self.context.arena.counters
        if not outcome.applied and (counts or outcome.is_stale):
            entry.dropped += 1  # one worker counts an update that all skip together
        if counts:
            counters.add("steps", 1)
        is_used = counts or not outcome.is_stale  # else it was too stale for an update of others
        if is_used and self.strategy.counts_tokens:
            counters.add("tokens", tokens)
        times = ("read", "compute", "apply", "wait")
        self.ring.append(
            kind=control.RecordKind.STEP,
            worker=self.job.slot,
            version=outcome.version,
            t_ns=step.ended_ns,
            loss=step.loss,
            tokens=tokens,
            nats=step.loss * step.size.labels,
            n_bytes=sum(batch.n_bytes for batch in step.batches),
            staleness=outcome.staleness,
            **{f"{name}_s": getattr(step, f"{name}_ns") / 1e9 for name in times},
        )


class OverlappedSteps(Steps):
    """Steps of lock-free workers, whose updates overlap with the next gradient."""

    def __init__(
        self, job: Job, context: Context, ring: control.Ring, gradients: Gradients
    ) -> None:
        """Build the strategy; refuse one of the user's whose worker forgets a read at the next."""
        super().__init__(job, context, ring, gradients)
        if not isinstance(self.strategy, HogwildWorker):
            raise ConfigError(
                f"overlap: the worker of strategy {context.strategy.name} is a "
                f"{type(self.strategy).__name__}, expected a HogwildWorker of "
                "mlxhog.strategies.hogwild; base it on that, or leave overlap out"
            )
        context.settle = self.settle
        self._helper = ThreadPoolExecutor(1, initializer=darwin.ask_for_performance_cores)
        self._pending: WorkerStep | None = None  # its update is not begun
        self._applying: Future[None] | None = None

    def step(self) -> None:
        """Process one ticket as far as its gradient."""
        budget, counters = self.context.budget.tokens, self.context.arena.counters
        if self._pending is not None and budget is not None:
            if counters.load("tokens") + self._pending.size.tokens >= budget:
                self.settle()  # it is the last one of the budget
        super().step()

    def settle(self) -> None:
        """Apply the pending update, if any."""
        self._after_read()
        self._finish()

    def _process(self, lease: Lease) -> int:
        try:
            step = self._computed(lease)
        finally:  # after an error, too: an update is applied whole
            waited_ns = self._finish()
        self._pending = step
        return step.read_ns + step.wait_ns + step.compute_ns + waited_ns

    def _after_read(self) -> None:
        if self._pending is not None:
            self._applying = self._helper.submit(self._apply, self._pending)
            self._pending = None

    def _apply(self, step: WorkerStep) -> None:
        """Apply an update and record it at once: a death during the gradient costs no record.

        Waits for locks meanwhile are not the worker's. The phase is that of the write as long as it
        lasts.
        """
        entry, waited_ns = self.context.entry, self._write(step)
        entry.wait_ns -= waited_ns
        self._record(step)
        entry.phase = WorkerPhase.COMPUTE

    def _finish(self) -> int:
        """Wait until the update is applied; returns the nanoseconds, its time of writing."""
        if self._applying is None:
            return 0
        began_ns = monotonic_ns()
        self._applying.result()
        self._applying = None
        waited_ns = monotonic_ns() - began_ns
        self.context.entry.apply_ns += waited_ns
        return waited_ns
