"""Links between machines, and rounds over them: their times, and the bytes they send.

Each machine trains its own copy of the parameters lock-free. By the clock, the machines average
what their copies moved since their last common parameters, while their workers continue.

A ring all-reduce over M machines has 2 (M - 1) stages, each of which carries an M-th of the bytes
(Patarasuk and Yuan 2009, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations).
"""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from mlxhog.base.quantities import parse_duration_s
from mlxhog.errors import ConfigError
from mlxhog.research.simulator.machine import (
    Behaviour,
    SimulatedStrategy,
    Simulation,
    WorkerContext,
)

FORM = "RATE or RATE:LATENCY, such as 100Mbit:50ms or 1Gbit"
_RATE = re.compile(r"(\d+(?:\.\d+)?)(k|M|G)bit(?:/s)?", re.IGNORECASE)
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
FLOAT_BYTES = 4
LINK_SHARE = 0.1  # largest share of the time in which rounds should use the link


@dataclass(frozen=True)
class Link:
    """A full-duplex link of each machine to the others."""

    bytes_per_s: float  # in each direction, above 0
    latency_s: float = 0.0  # of one way, 0 or more

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `FORM`; a ConfigError for another one."""
        rate, _, latency = text.strip().partition(":")
        match = _RATE.fullmatch(rate.strip())
        with suppress(ValueError):
            if match is not None and float(match[1]):
                bits = float(match[1]) * _BITS[match[2].lower()]
                return cls(bits / 8, parse_duration_s(latency) if latency else 0.0)
        raise ConfigError(f"the link {text!r} cannot be read; wanted {FORM}, a rate above 0")

    def transfer_s(self, n_bytes: float) -> float:
        """Seconds until one machine has got n bytes of another."""
        return self.latency_s + n_bytes / self.bytes_per_s

    def all_reduce_s(self, n_bytes: float, machines: int) -> float:
        """Seconds of a ring all-reduce of n bytes."""
        return 2 * (machines - 1) * self.transfer_s(n_bytes / machines)

    def round_s(self, n_bytes: float, machines: int) -> float:
        """Seconds of a round: the authority answers who takes part, then an all-reduce."""
        return 2 * self.latency_s + self.all_reduce_s(n_bytes, machines) if machines > 1 else 0.0

    def round_every_s(self, n_bytes: float, machines: int) -> float:
        """Least time between rounds, in whole seconds, with which they use `LINK_SHARE` of it."""
        return max(1.0, math.ceil(self.round_s(n_bytes, machines) / LINK_SHARE - 1e-9))


def sent_bytes(n_bytes: float, machines: int) -> float:
    """Bytes that each machine sends in an all-reduce of n bytes."""
    return 2 * (machines - 1) / machines * n_bytes


@dataclass(frozen=True)
class ClusterRounds(SimulatedStrategy):
    """Lock-free workers on several machines, whose copies are averaged in rounds by the clock.

    The workers are dealt to the machines in turn. Staleness counts updates of the same copy. A long
    round delays the next one. A toy problem takes the mean of the copies when a round ends.
    """

    machines: int  # their number, which divides that of the workers
    link: Link  # of each machine
    n_params: float  # parameters of the model
    round_every_s: float = 10.0  # between the beginnings of two rounds

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return self.link.round_s(FLOAT_BYTES * self.n_params, self.machines)

    def ended(self, seconds: float) -> int:
        """Rounds that have ended by then."""
        since_first_s = seconds - self.round_every_s - self.round_s
        return max(0, 1 + math.floor(since_first_s / max(self.round_every_s, self.round_s)))

    def use(self, seconds: float) -> dict[str, float]:
        """Return what rounds did with the links: `rounds`, `bytes_per_s` that each machine sends.

        `share` is that of the time in which a round is under way, `tenth_every_s` the advised time
        between rounds.
        """
        ended, round_s, n_bytes = self.ended(seconds), self.round_s, FLOAT_BYTES * self.n_params
        begun_s = self.round_every_s + ended * max(self.round_every_s, round_s)
        busy_s = ended * round_s + min(round_s, max(0.0, seconds - begun_s))
        return {
            "rounds": ended,
            "bytes_per_s": ended * sent_bytes(n_bytes, self.machines) / seconds,
            "share": busy_s / seconds,
            "tenth_every_s": self.link.round_every_s(n_bytes, self.machines),
        }

    def shared(self, sim: Simulation) -> list[int]:
        if sim.learner is not None:
            sim.learner.replicate(self.machines)
        return [0]  # rounds that have been merged

    def steps(self, worker: WorkerContext, shared: list[int]) -> Behaviour:
        own, sim = 1 + worker.rank % self.machines, worker.sim
        while True:
            if (ended := self.ended(sim.now)) > shared[0]:
                shared[0] = ended
                if sim.learner is not None:
                    sim.learner.merge(range(1, 1 + self.machines))
            yield from worker.gradient(own)
            yield from worker.write()
