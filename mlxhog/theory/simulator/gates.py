"""Lock-free steps behind a gate that bounds staleness, for the simulator.

SSP           waits before a read, on the clocks of the others
VersionBound  a hard bound of staleness in updates
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from mlxhog.errors import ConfigError
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import Behaviour, Condition, Start, WorkerContext

Gate = Callable[[WorkerContext], Condition]


def gated(
    workers: Sequence[WorkerContext], may_read: Gate, may_write: Gate, reads: dict[int, int]
) -> list[Start]:
    """Return lock-free steps that wait before the read and before the write.

    Args:
        workers: of the simulation.
        may_read: the condition of a worker before it reads.
        may_write: the condition before it writes.
        reads: filled with the version that each worker with a gradient in flight has read.
    """

    def behaviour(worker: WorkerContext) -> Behaviour:
        before_read, before_write = may_read(worker), may_write(worker)
        reads.pop(worker.rank, None)  # its read before it died
        for _ in worker.steps():
            yield before_read
            reads[worker.rank] = worker.look()
            yield worker.exchange()
            yield worker.read()
            yield worker.compute()
            yield worker.add()
            yield before_write
            worker.apply(reads.pop(worker.rank))

    return [partial(behaviour, worker) for worker in workers]


def at_once(worker: WorkerContext) -> Condition:
    """No gate."""
    return lambda: True


@dataclass(frozen=True)
class SSP(Scheme):
    """Stale synchronous parallel: no worker begins more than `slack` steps ahead of the slowest.

    Bounds clocks, not updates: staleness is at most (P - 1)(2 slack + 1). The slowest worker never
    waits, so no worker waits for ever.

    Attributes:
        slack: s; 0 is a barrier every step.

    Source: Ho et al. 2013, More Effective Distributed ML via a Stale Synchronous Parallel Server.
    """

    strategy: ClassVar[str] = "ssp"
    slack: int = 2

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker.

        Raises:
            ConfigError: the slack is negative.
        """
        if self.slack < 0:
            raise ConfigError(f"a slack of {self.slack}: wanted 0 or more")

        def near(worker: WorkerContext) -> Condition:
            clocks, rank = worker.state.clocks, worker.rank

            def holds() -> bool:
                slowest = min(clocks.get(other, 0) for other in worker.state.alive)
                return clocks.get(rank, 0) - slowest <= self.slack

            return holds

        return gated(workers, near, at_once, {})


@dataclass(frozen=True)
class VersionBound(Scheme):
    """No update is more than `most` updates old when it is added.

    At most `most` + 1 gradients are in flight. A worker may write if all others in flight can still
    write in time, oldest first: v + 1 + j - r_j <= most for the j-th oldest read r_j. (To ask that
    of the oldest alone deadlocks if several are equally old: `benchmarks/simulated.py`.)

    Attributes:
        most: largest staleness.
    """

    strategy: ClassVar[str] = "version_bound"
    most: int

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker.

        Raises:
            ConfigError: the bound is negative.
        """
        if self.most < 0:
            raise ConfigError(f"a largest staleness of {self.most}: wanted 0 or more")
        reads: dict[int, int] = {}

        def may_read(worker: WorkerContext) -> Condition:
            alive = worker.state.alive
            return lambda: sum(rank in alive for rank in reads) <= self.most

        def may_write(worker: WorkerContext) -> Condition:
            state, rank = worker.state, worker.rank

            def holds() -> bool:
                others = sorted(reads[one] for one in reads if one != rank and one in state.alive)
                ahead = (state.version + 1 + j - read for j, read in enumerate(others))
                return max(state.version - reads[rank], *ahead, 0) <= self.most

            return holds

        return gated(workers, may_read, may_write, reads)
