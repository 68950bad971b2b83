"""A cluster on one machine: members in threads meet at a table, and a script disturbs them.

A member's failure is that of a network: it raises `ClusterError` in its own call, and the others'
round is not committed.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mlxhog.cluster.group import ClusterError, Float32, Machine, Membership, State
from mlxhog.cluster.identity import Identity

Script = Callable[[str, str, int], bool]
"""(member, call, round) -> whether the call fails; it may also wait."""


def _undisturbed(member, call, round):
    return False


@dataclass
class Table:
    """Where the members of one cluster meet.

    Attributes:
        expected: members that a round waits for, within the limit.
        join_timeout_s: how long a round waits for them.
        script: disturbs calls.
    """

    expected: int
    join_timeout_s: float = 10.0
    script: Script = _undisturbed
    identity: Identity | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _waiting: dict[str, State] = field(default_factory=dict)
    _members: tuple[str, ...] = ()
    _states: dict[str, State] = field(default_factory=dict)
    _buffers: dict[str, Float32 | None] = field(default_factory=dict)
    _mean: Float32 | None = None
    _meetings: int = 0
    _averages: int = 0

    def check(self, identity):
        """See `Group.check`."""
        with self._changed:
            if self.identity is not None:
                identity.check(self.identity)
            self.identity = identity

    def meet(self, name, state):
        """Wait for the members of a round; see `Group.join` and `Group.state`."""
        with self._changed:
            self._waiting[name] = state
            meetings = self._meetings
            complete = self._changed.wait_for(
                lambda: self._meetings > meetings or len(self._waiting) >= self.expected,
                self.join_timeout_s,
            )
            if self._meetings == meetings:
                if not complete and name != min(self._waiting):
                    self._changed.wait_for(lambda: self._meetings > meetings, 1.0)
                if self._meetings == meetings:
                    self._states, self._waiting = dict(self._waiting), {}
                    self._members = tuple(sorted(self._states))
                    self._buffers, self._meetings = {}, meetings + 1
                    self._changed.notify_all()
            return self._membership(name)

    def _membership(self, name):
        newest = max(state.round for state in self._states.values())
        source = next(one for one in self._members if self._states[one].round == newest)
        rank, own = self._members.index(name), self._states[name]
        old = own.round < newest or (newest == 0 and name != source)
        state = self._states[source] if old else None
        ids = tuple(zlib.crc32(one.encode()) for one in self._members)
        return Membership(newest, rank, ids, tuple(map(Machine, ids, self._members))), state

    def mean(self, name, buffer):
        """The mean of all members' buffers; None if one of them has none or does not come."""
        with self._changed:
            self._buffers[name] = buffer
            averages, members = self._averages, len(self._members)
            if len(self._buffers) == members:
                parts = [self._buffers[one] for one in self._members]
                whole = [part for part in parts if part is not None]
                self._mean = np.mean(whole, axis=0) if len(whole) == members else None
                self._averages += 1
                self._changed.notify_all()
            elif not self._changed.wait_for(lambda: self._averages > averages, self.join_timeout_s):
                self._mean, self._averages = None, averages + 1
                self._changed.notify_all()
            return self._mean

    def forget(self, name):
        """Remove a member that leaves."""
        with self._changed:
            self._waiting.pop(name, None)
            self._changed.notify_all()


class InProcess:
    """One member; see `Group`."""

    def __init__(self, table, name, offer):
        """Take a place at the table.

        Args:
            table: of the cluster.
            name: of the member; the first in the order of names has rank 0.
            offer: gives the state of this member.
        """
        self._table, self._name, self._offer = table, name, offer
        self._round = 0
        self._state = None

    def _call(self, call):
        if self._table.script(self._name, call, self._round):
            raise ClusterError(f"cluster: {self._name} cannot reach the table to {call}")

    def check(self, identity):
        """Compare with the first member."""
        self._table.check(identity)

    def join(self):
        """Wait for the members of the next round."""
        state = self._offer()
        self._round = state.round
        self._call("join")
        member, self._state = self._table.meet(self._name, state)
        self._round = member.round
        return member

    def state(self):
        """The members' state, if this member's own is older."""
        self._call("state")
        return self._state

    def average(self, buffer, exact):
        """Replace the buffer by the mean."""
        try:
            self._call("average")
        except ClusterError:
            self._table.mean(self._name, None)
            raise
        mean = self._table.mean(self._name, buffer)
        self._call("commit")
        if mean is None:
            return False
        np.copyto(buffer, mean)
        return True

    def leave(self):
        """Leave the table."""
        self._table.forget(self._name)
