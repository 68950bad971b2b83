"""A cluster on one machine: members in threads meet at a table; in place of `TorchftGroup`."""

import threading
import zlib

import numpy as np

from mlxhog.cluster.group import ClusterError, Machine, Membership
from mlxhog.errors import ConfigError


class Table:
    """Where the members of one cluster meet.

    Attributes:
        expected: members of a round.
        limit_s: how long a member waits for the others.
    """

    def __init__(self, expected, limit_s=10.0):
        self.expected, self.limit_s = expected, limit_s
        self._changed, self._number = threading.Condition(), 0
        self._here, self._result = {}, None

    def meet(self, name, brought, n, decide):
        """Wait for n members; each gets what `decide` makes of all that they brought, by name."""
        with self._changed:
            number = self._number
            self._here[name] = brought
            if len(self._here) < n and self._changed.wait_for(
                lambda: self._number > number, self.limit_s
            ):
                return self._result
            self._result, self._here = decide(self._here), {}
            self._number += 1
            self._changed.notify_all()
            return self._result


class InProcess:
    """One member; see `TorchftGroup`."""

    def __init__(self, table, name, offer):
        """Take a place; `offer` gives the member's state, and the first name has rank 0."""
        self._table, self._name, self._offer = table, name, offer
        self._members, self._state = 1, None

    def check(self, identity):
        """All fit."""

    def join(self):
        table, own = self._table, self._offer()
        states = table.meet(self._name, own, table.expected, dict)
        names, newest = sorted(states), max(state.round for state in states.values())
        source = next(one for one in names if states[one].round == newest)
        is_old = own.round < newest or (newest == 0 and self._name != source)
        self._members, self._state = len(names), states[source] if is_old else None
        ids = tuple(zlib.crc32(one.encode()) for one in names)
        return Membership(newest, names.index(self._name), ids, tuple(map(Machine, ids, names)))

    def state(self):
        return self._state

    def average(self, buffer, exact):
        """Replace the buffer by the mean of all members' ones, if all come."""
        n = self._members

        def decide(buffers):
            return np.mean(list(buffers.values()), axis=0) if len(buffers) == n else None

        mean = self._table.meet(self._name, buffer, n, decide)
        if mean is not None:
            np.copyto(buffer, mean)
        return mean is not None

    def be_at(self, round):
        """Its offer says it at the next join."""

    def leave(self):
        """No other waits for it."""


# -- groups that the links of these tests open in their own process ------------------------------


def alone(cluster, offer, describe):
    """A cluster of one machine."""
    return InProcess(Table(1), "a", offer)


def refusing(cluster, offer, describe):
    """A cluster that this machine does not fit."""
    raise ConfigError("cluster: the token is wrong; take that of the line")


def out_of_reach(cluster, offer, describe):
    """A cluster whose lighthouse does not answer."""
    raise ClusterError("cluster: no lighthouse answers")


def faulty(cluster, offer, describe):
    """A group with a fault that a restart repeats."""
    raise TypeError("a fault of the program")
