"""Schemes for the simulator: when workers read, how they write and when they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mlxhog.errors import ConfigError
from mlxhog.theory.simulator.workers import Behaviour, Condition, Desk, Work


class Scheme(Protocol):
    """One way to train together."""

    def start(self, desks: Sequence[Desk]) -> list[Behaviour]:
        """Return what each worker does."""

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters, for the inputs of a prediction."""


@dataclass
class _Meeting:
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

    def start(self, desks: Sequence[Desk]) -> list[Behaviour]:
        """Return what each worker does."""

        def behaviour(desk: Desk) -> Behaviour:
            while True:
                read = desk.board.version
                yield desk.read()
                yield desk.compute()
                yield desk.add()
                desk.board.apply(desk.rank, read)

        return [behaviour(desk) for desk in desks]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "hogwild"}


@dataclass(frozen=True)
class Locked:
    """As Hogwild, but only one worker at a time may add: one lock for all parameters."""

    def start(self, desks: Sequence[Desk]) -> list[Behaviour]:
        """Return what each worker does."""
        adding: set[int] = set()

        def behaviour(desk: Desk) -> Behaviour:
            while True:
                read = desk.board.version
                yield desk.read()
                yield desk.compute()
                yield lambda: not adding
                adding.add(desk.rank)
                yield desk.add()
                adding.discard(desk.rank)
                desk.board.apply(desk.rank, read)

        return [behaviour(desk) for desk in desks]

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

    def start(self, desks: Sequence[Desk]) -> list[Behaviour]:
        """Return what each worker does."""

        def behaviour(desk: Desk) -> Behaviour:
            def my_turn() -> bool:  # every update passes the turn on
                return desk.board.version % len(desks) == desk.rank

            while True:
                read = desk.board.version
                yield desk.read()
                yield desk.compute()
                yield my_turn
                yield Work(self.handover_s)
                yield desk.add()
                desk.board.apply(desk.rank, read)

        return [behaviour(desk) for desk in desks]

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

    def start(self, desks: Sequence[Desk]) -> list[Behaviour]:
        """Return what each worker does.

        Raises:
            ConfigError: a round would wait for no one.
        """
        if not 0 <= self.backups < len(desks):
            raise ConfigError(
                f"{self.backups} backup workers of {len(desks)}: wanted 0 to {len(desks) - 1}, so "
                "that a round waits for someone"
            )
        quorum = len(desks) - self.backups
        meeting = _Meeting()

        def behaviour(desk: Desk) -> Behaviour:
            while True:
                read, over = desk.board.version, meeting.over()
                yield desk.read()
                yield desk.compute(unless=over)
                if not over():
                    yield desk.add(unless=over)
                if not over() and meeting.arrive() == quorum:
                    yield Work(self.round_s)
                    desk.board.apply(desk.rank, read, gradients=quorum)
                    desk.board.wasted += self.backups
                    meeting.end()
                yield over

        return [behaviour(desk) for desk in desks]

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

    def start(self, desks: Sequence[Desk]) -> list[Behaviour]:
        """Return what each worker does.

        Raises:
            ConfigError: the period is not positive.
        """
        if self.period < 1:
            raise ConfigError(f"an average every {self.period} steps: wanted 1 or more")
        meeting = _Meeting()

        def behaviour(desk: Desk) -> Behaviour:
            while True:
                over = meeting.over()
                yield desk.read()
                for _ in range(self.period):
                    yield desk.compute()
                    yield desk.add()
                    desk.board.apply(desk.rank, desk.board.version)
                if meeting.arrive() == len(desks):
                    yield Work(self.round_s)
                    meeting.end()
                yield over

        return [behaviour(desk) for desk in desks]

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters."""
        return {"name": "avg_runs", **asdict(self)}
