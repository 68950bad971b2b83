"""Steps that are added beside the computation of the worker's next gradient (`--overlap`).

    this thread   read 1 | compute 1 | read 2 | compute 2 ..... | read 3 | compute 3
    its helper                                | add step 1      |        | add step 2

While a GPU computes, its CPU norms, steps and adds. A worker reads first, so the gradient has no
part of the step that waits: with one worker each gradient is exactly one update late. Reads and
adds of one worker are never at the same time, nor two of its adds. Rows of n-gram tables alone are
read within the gradient, and may have that step already.

Without a next batch, and before anything but a step (an evaluation, a pause, the end), the worker
settles: it adds the step that waits, as without `--overlap`.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from mlxhog.arena import control
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.base import darwin
from mlxhog.errors import ConfigError
from mlxhog.strategies import Context, Lease
from mlxhog.strategies.hogwild import OverlappedWorker
from mlxhog.training.gradients import Gradients
from mlxhog.training.job import Job
from mlxhog.training.steps import Computed, Steps


class OverlappedSteps(Steps):
    """Steps of lock-free workers, each added beside the worker's next gradient."""

    def __init__(
        self, job: Job, context: Context, ring: control.Ring, gradients: Gradients
    ) -> None:
        """Build the strategy.

        Raises:
            ConfigError: a strategy of one's own, whose worker forgets a read at the next one.
        """
        super().__init__(job, context, ring, gradients)
        if not isinstance(self.strategy, OverlappedWorker):
            raise ConfigError(
                f"overlap: the worker of strategy {context.strategy.name} is a "
                f"{type(self.strategy).__name__}, expected an OverlappedWorker of "
                "mlxhog.strategies.hogwild; base it on that, or leave overlap out"
            )
        context.settle = self.settle
        self._helper = ThreadPoolExecutor(1, initializer=darwin.ask_for_performance_cores)
        self._waiting: Computed | None = None  # the gradient whose step is not begun
        self._adding: Future[None] | None = None

    def step(self) -> None:
        """Process one ticket as far as its gradient."""
        budget, counters = self.context.budget.tokens, self.context.arena.counters
        if self._waiting is not None and budget is not None:
            if counters.load("tokens") + self._waiting.tokens >= budget:
                self.settle()  # it is the last one of the budget
        super().step()

    def settle(self) -> None:
        """Add the step that waits, if any."""
        self._begin()
        self._finish()

    def _take(self, lease: Lease) -> int:
        """Read, and compute beside the write of the last step."""
        try:
            step = self._computed(lease)
        finally:  # after an error, too: a step is added whole
            waited_ns = self._finish()
        self._waiting = step
        return step.read_ns + step.wait_ns + step.compute_ns + waited_ns

    def _after_read(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """Let the helper add the step that waits."""
        if self._waiting is not None:
            self._adding = self._helper.submit(self._add, self._waiting)
            self._waiting = None

    def _add(self, step: Computed) -> None:
        """Add a step and record it at once, so that a death during the gradient costs no record.

        Waits for locks beside a gradient are not the worker's. The phase is that of the write as
        long as it lasts.
        """
        entry, written = self.context.entry, self._written(step)
        entry.wait_ns -= written.wait_ns
        self._record(step, written)
        entry.phase = Phase.COMPUTE

    def _finish(self) -> int:
        """Wait until the step is added; returns the nanoseconds, which are its time of writing."""
        if self._adding is None:
            return 0
        began_ns = monotonic_ns()
        self._adding.result()
        self._adding = None
        waited_ns = monotonic_ns() - began_ns
        self.context.entry.apply_ns += waited_ns
        return waited_ns
