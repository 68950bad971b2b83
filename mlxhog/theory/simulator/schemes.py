"""Schemes for the simulator: when workers read, how they write and when they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mlxhog.errors import ConfigError
from mlxhog.theory.simulator.workers import Behaviour, Condition, Work, WorkerContext


class Scheme(Protocol):
    """One way to train together."""

    def start(self, workers: Sequence[WorkerContext]) -> list[Behaviour]:
        """Return what each worker does."""

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters, for the inputs of a prediction."""


@dataclass
class _Barrier:
    """Rounds that begin when the one before has ended."""

    round_: int = 0
    arrived: int = 0

    def over(self) -> Condition:
        """Return the condition that the present round has ended."""
        mine = self.round_
        return lambda: self.round_ > mine

    def arrive(self) -> int:
        """Come to the present round; return how many have."""
        self.arrived += 1
        return self.arrived

    def end(self) -> None:
        """End the round for everyone."""
        self.round_, self.arrived = self.round_ + 1, 0


@dataclass(frozen=True)
class Hogwild:
    """Everyone reads, computes and adds without asking."""

    def start(self, workers: Sequence[WorkerContext]) -> list[Behaviour]:
        """Return what each worker does."""

        def behaviour(worker: WorkerContext) -> Behaviour:
            while True:
                read = worker.board.version
                yield worker.read()
                yield worker.compute()
                yield worker.add()
                worker.board.apply(worker.rank, read)

        return [behaviour(worker) for worker in workers]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "hogwild"}


@dataclass(frozen=True)
class Locked:
    """As Hogwild, but only one worker at a time may add: one lock for all parameters."""

    def start(self, workers: Sequence[WorkerContext]) -> list[Behaviour]:
        """Return what each worker does."""
        adding: set[int] = set()

        def behaviour(worker: WorkerContext) -> Behaviour:
            while True:
                read = worker.board.version
                yield worker.read()
                yield worker.compute()
                yield lambda: not adding
                adding.add(worker.rank)
                yield worker.add()
                adding.discard(worker.rank)
                worker.board.apply(worker.rank, read)

        return [behaviour(worker) for worker in workers]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "locked"}


@dataclass(frozen=True)
class RoundRobin:
    """Workers add in a fixed cyclic order; who is early waits for its turn.

    Attributes:
        handover_s: seconds until the next worker notices its turn.

    Source: Langford, Smola, Zinkevich 2009, arXiv:0911.0491.
    """

    handover_s: float = 0.0

    def start(self, workers: Sequence[WorkerContext]) -> list[Behaviour]:
        """Return what each worker does."""

        def behaviour(worker: WorkerContext) -> Behaviour:
            def my_turn() -> bool:  # every update passes the turn on
                return worker.board.version % len(workers) == worker.rank

            while True:
                read = worker.board.version
                yield worker.read()
                yield worker.compute()
                yield my_turn
                yield Work(self.handover_s)
                yield worker.add()
                worker.board.apply(worker.rank, read)

        return [behaviour(worker) for worker in workers]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "round_robin", **asdict(self)}


@dataclass(frozen=True)
class Sync:
    """Gradients at the same parameters, averaged: one update per round.

    Attributes:
        backups: workers that a round does not wait for; their gradients are thrown away.
        round_s: seconds for the barrier, beyond everyone's own `apply_s`.

    Source of backups: Chen et al. 2016, arXiv:1604.00981.
    """

    backups: int = 0
    round_s: float = 0.0

    def start(self, workers: Sequence[WorkerContext]) -> list[Behaviour]:
        """Return what each worker does.

        Raises:
            ConfigError: a round would wait for no one.
        """
        if not 0 <= self.backups < len(workers):
            raise ConfigError(
                f"{self.backups} backup workers of {len(workers)}: wanted 0 to {len(workers) - 1}, "
                "so that a round waits for someone"
            )
        quorum = len(workers) - self.backups
        barrier = _Barrier()

        def behaviour(worker: WorkerContext) -> Behaviour:
            while True:
                read, over = worker.board.version, barrier.over()
                yield worker.read()
                yield worker.compute(unless=over)
                if not over():
                    yield worker.add(unless=over)
                if not over() and barrier.arrive() == quorum:
                    yield Work(self.round_s)
                    worker.board.apply(worker.rank, read, gradients=quorum)
                    worker.board.wasted += self.backups
                    barrier.end()
                yield over

        return [behaviour(worker) for worker in workers]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "sync", **asdict(self)}


@dataclass(frozen=True)
class AvgRuns:
    """Private copies, averaged now and then; every step of a worker counts as an update.

    Attributes:
        period: steps of each worker between two averages.
        round_s: seconds for an average.

    Source: Zinkevich, Weimer, Smola, Li 2010, Parallelized Stochastic Gradient Descent.
    """

    period: int
    round_s: float = 0.0

    def start(self, workers: Sequence[WorkerContext]) -> list[Behaviour]:
        """Return what each worker does.

        Raises:
            ConfigError: the period is not positive.
        """
        if self.period < 1:
            raise ConfigError(f"an average every {self.period} steps: wanted 1 or more")
        barrier = _Barrier()

        def behaviour(worker: WorkerContext) -> Behaviour:
            while True:
                over = barrier.over()
                yield worker.read()
                for _ in range(self.period):
                    yield worker.compute()
                    yield worker.add()
                    worker.board.apply(worker.rank, worker.board.version)
                if barrier.arrive() == len(workers):
                    yield Work(self.round_s)
                    barrier.end()
                yield over

        return [behaviour(worker) for worker in workers]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "avg_runs", **asdict(self)}
