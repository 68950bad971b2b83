"""Links between machines, and rounds over them: what they take, and what they send.

Each machine trains its own copy of the parameters lock-free. By the clock, the machines average
what their copies moved since their last common parameters, and each adds the result to its copy
while its workers go on:

    theta_s  = sum over m of n_m theta_m / sum of n_m      n_m: gradients in the movement
    theta_m += theta_s - theta_m as it was read

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
from mlxhog.theory.simulator.workers import Behaviour, Phase, SharedState, WorkerContext

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

    The workers are dealt to the machines in turn. Staleness counts updates of the same copy, and an
    added result of a round is one of them.

    Attributes:
        machines: their number.
        link: of each machine.
        n_params: parameters of the model.
        round_every_s: seconds between the beginnings of two rounds.
        float_bytes: bytes of a parameter in a round: 4, or 2 for bfloat16.
        stop_workers: whether no step begins during a round.
    """

    strategy: ClassVar[str] = "cluster"
    machines: int
    link: Link
    n_params: float
    round_every_s: float = 10.0
    float_bytes: int = FLOAT_BYTES
    stop_workers: bool = False

    @property
    def round_bytes(self) -> float:
        """Bytes that a round averages."""
        return self.float_bytes * self.n_params

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return self.link.round_s(self.round_bytes, self.machines)

    def next_round(self, begin_s: float) -> float:
        """Return the beginning of the round after one; a long round delays it."""
        return max(begin_s + self.round_every_s, begin_s + self.round_s)

    def use(self, seconds: float) -> dict[str, float]:
        """Return what rounds did with the links from the start on.

        `rounds` that ended, `bytes_per_s` that each machine sends on average, and the `share` of
        the time in which a round is under way.
        """
        begins, begin_s = list[float](), self.round_every_s
        while begin_s < seconds:
            begins.append(begin_s)
            begin_s = self.next_round(begin_s)
        ended = sum(begin_s + self.round_s <= seconds for begin_s in begins)
        return {
            "rounds": ended,
            "bytes_per_s": ended * sent_bytes(self.round_bytes, self.machines) / seconds,
            "share": sum(min(one + self.round_s, seconds) - one for one in begins) / seconds,
        }

    def _behaviour(self, workers: Sequence[WorkerContext]) -> Callable[[WorkerContext], Behaviour]:
        if self.machines < 1 or len(workers) % self.machines:
            raise ConfigError(
                f"{self.machines} machines with {len(workers)} workers: wanted a number of "
                "machines that divides them"
            )
        state = workers[0].state
        copies = _Copies(self, state)

        def behaviour(worker: WorkerContext) -> Behaviour:
            own = worker.rank % self.machines
            for _ in worker.steps():
                while self.stop_workers and (rest_s := copies.rest_s()) > 0:
                    yield Phase(rest_s, on_core=False)
                copies.advance(through=True)
                if state.learner is not None:
                    state.learner.read(worker.rank, of=1 + own)
                read = copies.versions[own]
                yield worker.read()
                yield worker.compute()
                yield worker.add()
                copies.advance()
                if state.learner is not None:
                    state.learner.apply((worker.rank,), of=1 + own)
                state.count(worker.rank, copies.versions[own] - read, (worker.rank,))
                copies.versions[own] += 1
                copies.gradients[own] += 1

        return behaviour


class _Copies:
    """The machines' copies of the parameters, and the rounds that change them.

    Copies change only when a worker adds a step and when a round ends, so it is enough to bring the
    rounds up to date whenever a worker looks at its copy or adds to it.
    """

    def __init__(self, scheme: ClusterRounds, state: SharedState) -> None:
        self._scheme, self._state = scheme, state
        self._begin_s, self._reading = scheme.round_every_s, True  # of the present round
        self.versions = [0] * scheme.machines
        self.gradients = [0] * scheme.machines  # since the movement that was averaged last
        self._sent = [0] * scheme.machines
        if state.learner is not None:
            state.learner.replicate(scheme.machines)

    @property
    def _end_s(self) -> float:
        return self._begin_s + self._scheme.round_s

    def advance(self, *, through: bool = False) -> None:
        """Apply what rounds did before now; `through` includes what they do now."""
        now, learner = self._state.now, self._state.learner
        while True:
            at_s = self._begin_s if self._reading else self._end_s
            if at_s > now or (at_s == now and not through):
                return
            if self._reading:
                self._sent = list(self.gradients)
                if learner is not None:
                    learner.send()
            else:
                if learner is not None:
                    learner.receive({1 + m: sent for m, sent in enumerate(self._sent)})
                self.versions = [version + 1 for version in self.versions]
                self.gradients = [g - s for g, s in zip(self.gradients, self._sent, strict=True)]
                self._begin_s = self._scheme.next_round(self._begin_s)
            self._reading = not self._reading

    def rest_s(self) -> float:
        """Seconds until the present round ends; 0 without one."""
        self.advance()  # a step of another worker that ends now belongs to the movement
        now = self._state.now
        return self._end_s - now if self._begin_s <= now else 0.0
