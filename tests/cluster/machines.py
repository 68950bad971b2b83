"""Machines of one process: an arena each, whose workers are the test itself."""

import zlib
from dataclasses import dataclass, field

import numpy as np

from mlxhog.arena import Arena, plan
from mlxhog.cluster import anchor, round
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.group import identity_of
from mlxhog.config.config import TrainConfig
from mlxhog.models.spec import ParamSpec
from tests.cluster.group import InProcess, Table

SHAPES = {"a": (40,), "b": (7, 30), "c": (2500,)}


def choice(**numbers):
    """A cluster's numbers; its address is never used."""
    flat = {"outer_lr": "cluster_outer_lr", "outer_momentum": "cluster_outer_momentum"}
    named = {flat.get(name, name): value for name, value in numbers.items()}
    return TrainConfig(**{"cluster": "127.0.0.1:8600", **named})


@dataclass
class Machine:
    """One machine; threads of the test may use several of them at once."""

    table: Table
    name: str = "a"
    cluster: TrainConfig = field(default_factory=choice)
    seed: int = 0

    def __post_init__(self):
        spec = {name: ParamSpec(name, shape, "zeros") for name, shape in SHAPES.items()}
        extra = anchor.segments()
        layout = plan(spec, max_workers=2, n_tickets=8, extra=extra)
        self.arena = Arena.create(layout)
        self.identity = identity_of(
            self.cluster, layout, tokenizer="t", data="d", batch_size=4, seed=self.seed
        )
        self.own = Anchor(self.arena)
        self.own.begin()
        self.begin_link()

    def begin_link(self):
        """A new link, such as after the death of the last."""
        self.own = Anchor(self.arena)
        self.own.settle()
        self.group = InProcess(self.table, self.name, self.own.state)

    @property
    def id(self):
        """Its id in the table."""
        return zlib.crc32(self.name.encode())

    def play(self, *, is_due=True):
        self.group.check(self.identity)
        return round.play(self.own, self.group, self.cluster, is_due=is_due)

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
    def theta_s(self):
        """theta_s of the same parameters, a copy."""
        return self._all("link.anchor")

    def close(self):
        del self.own, self.group
        self.arena.close()
