"""A worker's gradients: of a batch, for warm-up, and for the measurement before training.

They need the framework and the model but no strategy: workers start and are measured before the
strategy is chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxhog.arena import Arena
from mlxhog.arena.control import Command
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Entry, Phase
from mlxhog.backends.backend import Backend, Grads
from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.cluster.anchor import own_epochs
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.data.batch import Batch, joined
from mlxhog.optim import updates
from mlxhog.strategies import Lease
from mlxhog.strategies.context import show_model
from mlxhog.training import choose_strategy
from mlxhog.training.job import Job

WARM_UP_TOKENS = 64
FEW_COST = 1.7
"""Time of a gradient of `WARM_UP_TOKENS` on a CPU over their share of a full one: 1.6 to 1.8, as
measured with 5 and 30 million parameters in both frameworks."""
LONGEST_NAP_S = 0.01  # sleep of a slowed worker between checks whether the run continues


class Gradients:
    """Computes the gradients of one worker.

    Attributes:
        backend: its framework, bound to the model.
        slowdown: of this worker, by the option `slow`.
    """

    def __init__(self, job: Job, arena: Arena, entry: Entry, backend: Backend) -> None:
        """Open the training data.

        Args:
            job: of the worker.
            arena: of the run.
            entry: of the worker.
            backend: its framework, bound to the model.
        """
        self._job, self._arena, self._entry, self.backend = job, arena, entry, backend
        self._batches = job.setup.batches()
        self._rank = job.slot - 1
        self.slowdown = parse_slowdowns(job.config.slow).get(self._rank, Slowdown())
        self._measured = False

    # -- of a batch ------------------------------------------------------------------------------

    def gradient(self, lease: Lease) -> Grads:
        """The gradient of a batch at the parameters that the strategy has read."""
        return self.of(self.micro_batches(lease))[1]

    def micro_batches(self, lease: Lease) -> list[Batch]:
        """The lease's sequences, `micro_batch` at a time."""
        if lease.parts is None:
            return self._divided([self._batch(lease.epoch, lease.ticket)])
        every = (
            self._batch(part.epoch, part.ticket).part(part.begin, part.end) for part in lease.parts
        )
        # An epoch's last ticket may have fewer sequences.
        return self._divided([part for part in every if len(part.x)])

    def _batch(self, epoch: int, ticket: int) -> Batch:
        """The batch of a ticket; in a cluster, in an order of this machine's own."""
        if self._job.setup.link is not None:
            epoch += own_epochs(self._arena)
        return self._batches.at(epoch, ticket)

    def _divided(self, parts: list[Batch]) -> list[Batch]:
        """The sequences of all parts, `micro_batch` at a time."""
        if not parts:
            return []
        batch, rows = joined(parts), self._job.micro_batch
        return [batch.part(begin, begin + rows) for begin in range(0, len(batch.x), rows)]

    def of(self, batches: list[Batch]) -> tuple[float, Grads]:
        """Mean loss and gradient over the micro-batches, each weighted by its counted labels."""
        if len(batches) == 1:
            return self.backend.loss_and_grads(batches[0])
        total = sum(batch.n_labels for batch in batches)
        mean = updates.GradientSum()
        loss = 0.0
        for batch in batches:
            share = batch.n_labels / max(total, 1)
            part, grads = self.backend.loss_and_grads(batch)
            self._entry.beat()
            loss += share * part
            mean.add(grads, share)
        return loss, mean.grads()

    def slow_down(self, spent_ns: int, step: int, continues: Callable[[], bool]) -> None:
        """Sleep so that a gradient takes longer by the factor of `slow`, or until the run ends.

        Args:
            spent_ns: time that the gradient took.
            step: its number among this worker's.
            continues: whether the run continues.
        """
        factor = self.slowdown.factor_of(self._job.config.seed, self._rank, step)
        end_ns = monotonic_ns() + (factor - 1) * spent_ns
        while (rest_s := (end_ns - monotonic_ns()) / 1e9) > 0 and continues():
            self._entry.beat()
            time.sleep(min(rest_s, LONGEST_NAP_S))

    # -- before training -------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Compute an unused gradient, so that no step is timed with the framework's lazy set-up.

        A GPU compiles for the shape of a step. On a CPU a few tokens suffice, and are faster.
        """
        print(f"micro-batch {self._job.micro_batch}", flush=True)
        show_model(self._job.setup.strategy, self._arena, self.backend)
        self.backend.loss_and_grads(self._few())

    def _few(self) -> Batch:
        """A small batch for warm-up; on a GPU it has the shape of a full step."""
        batch = self._batches.example().part(0, self._job.micro_batch)
        if self._job.spec.backend in GPU_BACKENDS:
            return batch
        return batch.part(0, 1).beginning(WARM_UP_TOKENS)

    def measure(self) -> None:
        """Time gradients, together with the other initial workers; see `choose_strategy`."""
        workers, times = self._job.setup.strategy.workers, list[float]()
        if self._measured or self._rank >= workers:
            return
        limit_s, expected_s = choose_strategy.limit_s(self._job.budget.seconds), self._expected_s()
        if choose_strategy.LEAST * expected_s > limit_s:
            limit_s = 0.0
        while self._asked_to_measure() and not choose_strategy.is_enough(
            len(times), sum(times), limit_s
        ):
            unused = self._batches.at(0, len(times) % self._batches.n_tickets)
            batches = self._divided([unused])
            began_ns = monotonic_ns()
            self._entry.beat(Phase.COMPUTE)
            self.of(batches)
            self.slow_down(monotonic_ns() - began_ns, len(times), self._asked_to_measure)
            times.append((monotonic_ns() - began_ns) / 1e9)
        self._measured = True
        choose_strategy.Paces(self._arena, workers).note(self._rank, expected_s, times)

    def _expected_s(self) -> float:
        """Estimate the seconds of a gradient from one of a few tokens."""
        few, whole = self._few(), self._batches.example()
        began_ns = monotonic_ns()
        self._entry.beat(Phase.COMPUTE)
        self.backend.loss_and_grads(few)
        few_s = (monotonic_ns() - began_ns) / 1e9
        times = whole.x.size / few.x.size
        if self._job.spec.backend not in GPU_BACKENDS:
            times = max(1.0, times / FEW_COST)
        factor = self.slowdown.factor_of(self._job.config.seed, self._rank, 0)
        return factor * few_s * times

    def _asked_to_measure(self) -> bool:
        return self._arena.counters.load("command") == Command.MEASURE
