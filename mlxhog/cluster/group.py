"""The seam between a link and its cluster: who takes part in a round, and their average.

`torchft_group.py` implements it over a network, `tests/cluster/group.py` between threads. A
link makes these calls, in this order; `check` once, the others for every round:

    check    compare what all members must have in common
    join     wait for the members of the next round
    state    what the members have, if it is not what this one has; the link takes it over
    average  the mean of the members' buffers, or none for any of them

A group may raise any error at any time. The link then ends, and the next one begins from the arena.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.base.quantities import MOST_SECONDS
from mlxhog.cluster.identity import Identity
from mlxhog.errors import MlxhogError, shown

Float32 = NDArray[np.float32]
MOST_COUNT = 2**60
"""Limit of counts in a state; their sums still fit 64 bits."""


class ClusterError(MlxhogError):
    """A round cannot go on: members are out of reach, or do not have the same theta_s."""

    exit_code = 1  # of a link; a new one is started


@dataclass(frozen=True)
class Machine:
    """A machine of a cluster, as it describes itself at each join.

    Attributes:
        id: no other machine has it, 0 < id < 2^63.
        name: for people; several machines may have it.
        tokens: in theta_s.
        rounds: that it has committed.
        seen_s: seconds since its last join, by the clock of the lighthouse.
    """

    id: int
    name: str
    tokens: int = 0
    rounds: int = 0
    seen_s: float = 0.0


@dataclass(frozen=True)
class Membership:
    """The members of one round.

    Attributes:
        round: number of the round, from 0; the committed rounds before it.
        rank: of this member.
        ids: of the members, by rank.
        machines: members, and others that the lighthouse has seen.
    """

    round: int
    rank: int
    ids: tuple[int, ...]
    machines: tuple[Machine, ...] = ()

    @property
    def members(self) -> int:
        """Number of members, at least 1."""
        return len(self.ids)

    @property
    def id(self) -> int:
        """The id of this member."""
        return self.ids[self.rank]


@dataclass(frozen=True)
class State:
    """What all members have after the same rounds, and a joiner loads.

    Attributes:
        round: committed rounds.
        tokens: tokens in them, of all members; the position of the schedule.
        anchor: theta_s, (n,) float32.
        velocity: v of the outer optimizer, (n,) float32.
        seconds: of training since the cluster began.
    """

    round: int
    tokens: int
    anchor: Float32
    velocity: Float32
    seconds: float = 0.0

    @property
    def digest(self) -> bytes:
        """SHA-256 of theta_s, 32 bytes; the same on all members."""
        return hashlib.sha256(self.anchor.data).digest()

    def check(self, n: int) -> None:
        """Refuse what another member sent as its state, unless a run may take it over.

        Args:
            n: number of parameters.

        Raises:
            ClusterError: a part of it has another type or shape, or is not finite.
        """
        counts = (self.round, self.tokens)
        problem = None
        if any(
            not isinstance(a, np.ndarray) or a.dtype != np.float32 or a.shape != (n,)
            for a in (self.anchor, self.velocity)
        ):
            problem = f"has other parameters than {n:,} float32"
        elif not (np.isfinite(self.anchor).all() and np.isfinite(self.velocity).all()):
            problem = "has numbers that are not finite"
        elif not all(type(count) is int and 0 <= count < MOST_COUNT for count in counts):
            problem = "has a count that is not a whole number of tokens or rounds"
        elif type(self.seconds) not in (int, float) or not 0 <= self.seconds <= MOST_SECONDS:
            problem = f"has trained for {shown(self.seconds)} s"
        if problem is not None:
            raise ClusterError(
                f"cluster: the state of another member {problem}; this machine keeps its own. "
                "Give the token only to machines of this run"
            )


class Group(Protocol):
    """One member's view of a cluster; used by one thread."""

    def check(self, identity: Identity) -> None:
        """Refuse this member if it does not fit the others.

        Raises:
            ConfigError: see `Identity.check`.
            ClusterError, OSError, RuntimeError: the authority is out of reach.
        """

    def join(self) -> Membership:
        """Wait for the members of the next round.

        Raises:
            ClusterError, OSError, RuntimeError: the authority or a member is out of reach.
        """

    def state(self) -> State | None:
        """The members' state after `join`; None if this member's own is of the same round.

        In round 0 it is that of rank 0, so that all begin at the same parameters.
        """

    def average(self, buffer: Float32, exact: int) -> bool:
        """Replace a buffer by the mean over all members, the same bits for each.

        Args:
            buffer: (n,) float32; of undefined content if the result is False.
            exact: floats at its end that are sent as float32, also with `bfloat16`; at least 1.

        Returns:
            Whether all members have the mean; else none of them may use it.
        """

    def leave(self) -> None:
        """Leave the cluster; no other call follows."""


Offer = Callable[[], State]
"""Gives the state of this member, for one that joins; called from any thread during `join`."""
Describe = Callable[[], Machine]
"""Gives this member as the others shall see it."""
