"""A worker's gradients, of batches and for warm-up; they need the model but no strategy."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Entry
from mlxhog.backends.backend import Backend, Grads
from mlxhog.base.workers import GPU_BACKENDS
from mlxhog.cluster.anchor import own_epochs
from mlxhog.config.rules import Slowdown, parse_slowdowns
from mlxhog.data.batch import Batch, joined
from mlxhog.optim import updates
from mlxhog.strategies import Lease
from mlxhog.strategies.context import show_model
from mlxhog.training.job import Job

WARM_UP_TOKENS = 64
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

    # -- of a batch ------------------------------------------------------------------------------

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
        batch = self._batches.example().part(0, self._job.micro_batch)
        if self._job.spec.backend not in GPU_BACKENDS:
            batch = batch.part(0, 1).beginning(WARM_UP_TOKENS)
        self.backend.loss_and_grads(batch)
