"""Links between machines, and rounds over them: what they take, and what they send.

Each machine trains its own copy of the parameters lock-free. By the clock, the machines average
what their copies moved since their last common parameters, while their workers go on.

A ring all-reduce over M machines has 2 (M - 1) stages, each of which carries an M-th of the bytes
(Patarasuk and Yuan 2009, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from mlxhog.base.quantities import parse_duration_s
from mlxhog.errors import ConfigError
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import Behaviour, WorkerContext

FORM = "RATE or RATE:LATENCY, such as 100Mbit:50ms or 1Gbit"
_RATE = re.compile(r"(\d+(?:\.\d+)?)(k|M|G)bit(?:/s)?", re.IGNORECASE)
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
FLOAT_BYTES = 4
LINK_SHARE = 0.1
"""Largest share of the time in which rounds should use the link."""


@dataclass(frozen=True)
class Link:
    """A full-duplex link of each machine to the others.

    Attributes:
        bytes_per_s: in each direction.
        latency_s: of one way.
    """

    bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: a rate that is not finite and above 0, or a negative latency.
        """
        if not (0 < self.bytes_per_s < math.inf and 0 <= self.latency_s < math.inf):
            raise ConfigError(
                f"a link of {self.bytes_per_s:g} bytes/s and {self.latency_s:g} s; wanted a rate "
                "above 0 and a latency of 0 or more"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `FORM`; a plain number is a rate in Gbit/s.

        Raises:
            ConfigError: another form.
        """
        rate, _, latency = text.strip().partition(":")
        match = _RATE.fullmatch(rate.strip())
        try:
            bits = float(match[1]) * _BITS[match[2].lower()] if match else 1e9 * float(rate)
            return cls(bits / 8, parse_duration_s(latency) if latency else 0.0)
        except ValueError:
            raise ConfigError(f"the link {text!r} cannot be read; wanted {FORM}") from None

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

    def __str__(self) -> str:
        """As `parse` reads it."""
        mbit = 8 * self.bytes_per_s / 1e6
        rate = f"{mbit / 1e3:g}Gbit" if mbit >= 1e3 else f"{mbit:g}Mbit"
        return rate + (f":{1e3 * self.latency_s:g}ms" if self.latency_s else "")


def sent_bytes(n_bytes: float, machines: int) -> float:
    """Bytes that each machine sends in an all-reduce of n bytes."""
    return 2 * (machines - 1) / machines * n_bytes


@dataclass(frozen=True)
class ClusterRounds(Scheme):
    """Lock-free workers on several machines, whose copies meet in rounds by the clock.

    The workers are dealt to the machines in turn. Staleness counts updates of the same copy. A long
    round delays the next one. A toy problem takes the mean of the copies when a round ends.

    Attributes:
        machines: their number.
        link: of each machine.
        n_params: parameters of the model.
        round_every_s: seconds between the beginnings of two rounds.
        float_bytes: bytes of a parameter in a round: 4, or 2 for bfloat16.
    """

    strategy: ClassVar[str] = "cluster"
    machines: int
    link: Link
    n_params: float
    round_every_s: float = 10.0
    float_bytes: int = FLOAT_BYTES

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return self.link.round_s(self.float_bytes * self.n_params, self.machines)

    @property
    def _gap_s(self) -> float:
        """Seconds between the beginnings of two rounds."""
        return max(self.round_every_s, self.round_s)

    def ended(self, seconds: float) -> int:
        """Rounds that have ended by then."""
        since_first_s = seconds - self.round_every_s - self.round_s
        return max(0, 1 + math.floor(since_first_s / self._gap_s))

    def use(self, seconds: float) -> dict[str, float]:
        """Return what rounds did with the links from the start on.

        `rounds` that ended, `bytes_per_s` that each machine sends on average, and the `share` of
        the time in which a round is under way.
        """
        ended = self.ended(seconds)
        sent = ended * sent_bytes(self.float_bytes * self.n_params, self.machines)
        busy_s = ended * self.round_s + self.round_s - self._rest_s(seconds, ended)
        return {"rounds": ended, "bytes_per_s": sent / seconds, "share": busy_s / seconds}

    def _rest_s(self, now: float, ended: int) -> float:
        """Seconds of work that are left to the round after those that ended."""
        begin_s = self.round_every_s + ended * self._gap_s
        return min(self.round_s, max(0.0, begin_s + self.round_s - now))

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        if self.machines < 1 or len(workers) % self.machines:
            raise ConfigError(
                f"{self.machines} machines with {len(workers)} workers: wanted a number of "
                "machines that divides them"
            )
        state, versions, merged = workers[0].state, [0] * self.machines, [0]
        if state.learner is not None:
            state.learner.replicate(self.machines)

        def meet() -> None:
            """Merge after a round."""
            ended = self.ended(state.now)
            if ended > merged[0] and state.learner is not None:
                state.learner.merge(range(1, 1 + self.machines))
            merged[0] = ended

        def behaviour(worker: WorkerContext) -> Behaviour:
            own = worker.rank % self.machines
            for _ in worker.steps():
                meet()
                yield from worker.replica_step(versions, own)

        return behaviour
