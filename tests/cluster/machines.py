"""Machines of one process: an arena each, whose workers are the test itself."""

import threading
import zlib
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mlxhog.arena import Arena, plan
from mlxhog.cluster import group, outer_state, round
from mlxhog.cluster.group import ClusterError, Membership, identity_of
from mlxhog.cluster.outer_state import OuterState
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError
from mlxhog.models.spec import ParamSpec
from tests.threads import LIMIT_S

SHAPES = {"a": (40,), "b": (7, 30), "c": (2500,)}


def choice(**numbers):
    """A cluster's numbers; its address is never used."""
    flat = {"outer_lr": "cluster_outer_lr", "outer_momentum": "cluster_outer_momentum"}
    named = {flat.get(name, name): value for name, value in numbers.items()}
    return TrainConfig(**{"cluster": "127.0.0.1:8600", **named})


@dataclass
class Machine:
    """One machine; threads of the test may use several of them at once."""

    table: "Table"
    name: str = "a"
    cluster: TrainConfig = field(default_factory=choice)
    seed: int = 0

    def __post_init__(self):
        spec = {name: ParamSpec(name, shape, "zeros") for name, shape in SHAPES.items()}
        extra = outer_state.segments()
        layout = plan(spec, max_workers=2, n_tickets=8, extra=extra)
        self.arena = Arena.create(layout)
        self.identity = identity_of(
            self.cluster, layout, tokenizer="t", data="d", batch_size=4, seed=self.seed
        )
        self.own = OuterState(self.arena)
        self.own.initialize()
        self.restart()

    def restart(self):
        """A new sidecar, such as after the death of the last."""
        self.own = OuterState(self.arena)
        self.own.recover()
        self.group = InProcess(self.table, self.name, self.own.state)

    @property
    def id(self):
        """Its id in the table."""
        return zlib.crc32(self.name.encode())

    def play(self, *, is_due=True):
        self.group.check(self.identity)
        return round.run_round(self.own, self.group, self.cluster, is_due=is_due)

    def train(self, step, tokens=100):
        """Add a number to every parameter, as workers would."""
        for name in SHAPES:
            self.arena.param(name)[...] += np.float32(step)
        self.arena.counters.add("tokens", tokens)

    def _all(self, segment):
        parts = self.arena.views(segment)
        return np.concatenate([parts[name].ravel() for name in SHAPES])

    @property
    def theta(self):
        """All parameters, a copy."""
        return self._all("params")

    @property
    def outer(self):
        """The outer parameters, a copy."""
        return self._all("outer.params")

    def close(self):
        del self.own, self.group
        self.arena.close()


class Table:
    """Where the expected members of one cluster meet, and wait for each other.

    Attributes:
        away: names of members that others do not wait for: their sidecar has ended.
    """

    def __init__(self, expected):
        self.expected, self.away = expected, set()
        self._changed, self._number = threading.Condition(), 0
        self._here, self._result = {}, None

    def meet(self, name, brought, n, decide):
        """Wait for n members; each gets what `decide` makes of all that they brought, by name."""
        with self._changed:
            number = self._number
            self._here[name] = brought
            self._changed.notify_all()
            assert self._changed.wait_for(
                lambda: self._number > number or len(self._here.keys() | self.away) >= n, LIMIT_S
            )
            if self._number == number:
                self._result, self._here = decide(self._here), {}
                self._number += 1
                self._changed.notify_all()
            return self._result

    def lose(self, name):
        """Let the others wait no longer for a member."""
        with self._changed:
            self.away.add(name)
            self._changed.notify_all()


class InProcess:
    """One member; see `TorchftGroup`."""

    def __init__(self, table, name, get_state):
        """Take a place; `get_state` gives the member's state, and the first name has rank 0."""
        self._table, self._name, self._get_state = table, name, get_state
        self._members, self._state = 1, None

    def check(self, identity):
        """All fit."""

    def join(self):
        table, own = self._table, self._get_state()
        states = table.meet(self._name, own, table.expected, dict)
        names, newest = sorted(states), max(state.round for state in states.values())
        source = next(one for one in names if states[one].round == newest)
        is_old = own.round < newest or (newest == 0 and self._name != source)
        self._members, self._state = len(names), states[source] if is_old else None
        ids = tuple(zlib.crc32(one.encode()) for one in names)
        machines = tuple(map(group.MemberMachine, ids, names))
        return Membership(newest, names.index(self._name), ids, machines)

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
        """Its get_state says it at the next join."""

    def leave(self):
        """No other waits for it."""


def alone(cluster, get_state, describe):
    """A cluster of one machine."""
    return InProcess(Table(1), "a", get_state)


def fail(error, cluster, get_state, describe):
    raise error


refusing = partial(fail, ConfigError("cluster: the token is wrong; take that of the line"))
out_of_reach = partial(fail, ClusterError("cluster: no lighthouse answers"))
faulty = partial(fail, TypeError("a fault of the program"))  # a restart repeats it
