"""Lock-free steps behind a gate that bounds staleness, for the simulator; two of them deadlock.

SSP           waits before a read, on the clocks of the others: never deadlocks
VersionBound  a hard bound of staleness in updates; safe, or the obvious rule, which deadlocks
PushGate      waits at the write, as in document 003: a worker that waits once waits for ever
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from mlxhog.errors import ConfigError
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import Behaviour, Condition, Start, WorkerContext


def _check_bound(what: str, bound: int) -> None:
    if bound < 0:
        raise ConfigError(f"{what} of {bound}: wanted 0 or more")


def _behaviours(
    workers: Sequence[WorkerContext],
    pull: Callable[[WorkerContext], Condition],
    push: Callable[[WorkerContext], Condition],
    reads: dict[int, int],
) -> list[Start]:
    """Lock-free steps that wait for `pull` before the read and for `push` before the write."""

    def behaviour(worker: WorkerContext) -> Behaviour:
        may_read, may_write = pull(worker), push(worker)
        reads.pop(worker.rank, None)  # its read before it died
        for _ in worker.steps():
            yield may_read
            reads[worker.rank] = worker.look()
            yield worker.exchange()
            yield worker.read()
            yield worker.compute()
            yield worker.add()
            yield may_write
            worker.apply(reads.pop(worker.rank))

    return [partial(behaviour, worker) for worker in workers]


def _at_once(worker: WorkerContext) -> Condition:
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
        _check_bound("a slack", self.slack)

        def near(worker: WorkerContext) -> Condition:
            clocks, rank = worker.state.clocks, worker.rank

            def holds() -> bool:
                slowest = min(clocks.get(other, 0) for other in worker.state.alive)
                return clocks.get(rank, 0) - slowest <= self.slack

            return holds

        return _behaviours(workers, near, _at_once, {})


@dataclass(frozen=True)
class VersionBound(Scheme):
    """No update is more than `most` updates old when it is added.

    At most `most` + 1 gradients are in flight. The safe rule lets a worker write if all others in
    flight can still write in time, oldest first: v + 1 + j - r_j <= most for the j-th oldest read
    r_j. The obvious rule asks that of the oldest alone, and deadlocks if several are equally old.

    Attributes:
        most: largest staleness.
        safe: the safe rule, or the obvious one.
    """

    strategy: ClassVar[str] = "version_bound"
    most: int
    safe: bool = True

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker.

        Raises:
            ConfigError: the bound is negative.
        """
        _check_bound("a largest staleness", self.most)
        reads: dict[int, int] = {}

        def may_read(worker: WorkerContext) -> Condition:
            alive = worker.state.alive
            return lambda: not self.safe or sum(rank in alive for rank in reads) <= self.most

        def may_write(worker: WorkerContext) -> Condition:
            state = worker.state

            def holds() -> bool:
                others = sorted(
                    read
                    for rank, read in reads.items()
                    if rank != worker.rank and rank in state.alive
                )
                following = others if self.safe else others[:1]
                in_time = all(
                    state.version + 1 + j - read <= self.most for j, read in enumerate(following)
                )
                return in_time and state.version - reads[worker.rank] <= self.most

            return holds

        return _behaviours(workers, may_read, may_write, reads)


@dataclass(frozen=True)
class PushGate(Scheme):
    """Document 003's BoundedStalenessServer: wait at the write while the gradient is too old.

    The version grows and the version that was read stays, so a worker that waits never continues,
    and waiting makes no gradient younger.

    Attributes:
        most: its bound of staleness.
    """

    strategy: ClassVar[str] = "push_gate"
    most: int

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker.

        Raises:
            ConfigError: the bound is negative.
        """
        _check_bound("a largest staleness", self.most)
        reads: dict[int, int] = {}

        def young(worker: WorkerContext) -> Condition:
            return lambda: worker.state.version - reads[worker.rank] <= self.most

        return _behaviours(workers, _at_once, young, reads)
