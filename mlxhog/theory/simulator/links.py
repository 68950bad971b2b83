"""Links between machines, and rounds over them: what they take, send, and lose while unplugged.

Each machine trains its own copy of the parameters lock-free. By the clock, the machines that the
first one reaches average what their copies moved since their last common parameters, and each adds
the result to its copy while its workers go on:

    D      = sum over m of n_m (theta_s - theta_m) / sum of n_m      n_m: gradients in the movement
    theta_s' = theta_s - outer_lr (D + outer_momentum v)             the outer step of DiLoCo
    theta_m += theta_s' - theta_m as it was read

A ring all-reduce over M machines has 2 (M - 1) stages, each of which carries an M-th of the bytes
(Patarasuk and Yuan 2009, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import ClassVar, Self

from mlxhog.errors import ConfigError
from mlxhog.files.quantities import parse_duration_s
from mlxhog.theory.simulator.schemes import Scheme
from mlxhog.theory.simulator.workers import Behaviour, Phase, SharedState, Start, WorkerContext

FORM = "RATE or RATE:LATENCY, such as 100Mbit:50ms or 1Gbit"
_RATE = re.compile(r"(\d+(?:\.\d+)?)(k|M|G)bit(?:/s)?", re.IGNORECASE)
_BITS = {"k": 1e3, "m": 1e6, "g": 1e9}
FLOAT_BYTES = 4
STATE_BYTES = 2 * FLOAT_BYTES
"""Of a parameter that a machine loads when it joins: theta_s and the velocity."""
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
class Outage:
    """A machine is unplugged: it trains on alone, and the others go on without it."""

    machine: int
    at_s: float
    for_s: float

    def holds(self, at_s: float) -> bool:
        """Whether the machine is unplugged at a time."""
        return self.at_s <= at_s < self.at_s + self.for_s


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        begin_s: when the members read their parameters.
        end_s: when they add the result, or give up.
        members: numbers of the machines.
        committed: whether all of them had the result; else none uses it.
    """

    begin_s: float
    end_s: float
    members: tuple[int, ...]
    committed: bool


@dataclass(frozen=True)
class LinkUse:
    """What rounds did with the links in some time.

    Attributes:
        rounds: committed.
        failed: not committed, since a member was unplugged meanwhile.
        bytes_per_s: that each machine sends, on average.
        share: of the time in which a round is under way.
    """

    rounds: int
    failed: int
    bytes_per_s: float
    share: float


@dataclass(frozen=True)
class ClusterRounds(Scheme):
    """Lock-free workers on several machines, whose copies meet in rounds by the clock.

    The workers are dealt to the machines in turn. Staleness counts updates of the same copy, and an
    added result of a round is one of them.

    Attributes:
        machines: their number; the first is the authority that says who takes part.
        link: of each machine.
        n_params: parameters of the model.
        round_every_s: seconds between the beginnings of two rounds.
        float_bytes: bytes of a parameter in a round: 4, or 2 for bfloat16.
        outages: unplugged machines.
        timeout_s: seconds after which members give up a round with an unplugged machine.
        stop_workers: whether no step begins during a round.
    """

    strategy: ClassVar[str] = "cluster"
    machines: int
    link: Link
    n_params: float
    round_every_s: float = 10.0
    float_bytes: int = FLOAT_BYTES
    outages: tuple[Outage, ...] = ()
    timeout_s: float = 5.0
    stop_workers: bool = False

    @property
    def round_bytes(self) -> float:
        """Bytes that a round averages."""
        return self.float_bytes * self.n_params

    def members(self, at_s: float) -> tuple[int, ...]:
        """Return the machines that the first one reaches."""
        away = {outage.machine for outage in self.outages if outage.holds(at_s)}
        if 0 in away:
            return (0,)
        return tuple(m for m in range(self.machines) if m not in away)

    def rounds(self) -> Iterator[Round]:
        """Yield all rounds in their order, without end."""
        begin_s, before = self.round_every_s, self.members(0.0)
        while True:
            members = self.members(begin_s)
            end_s = begin_s + self.link.round_s(self.round_bytes, len(members))
            if set(members) - set(before):
                end_s += self.link.transfer_s(STATE_BYTES * self.n_params)
            cuts = [
                outage.at_s
                for outage in self.outages
                if outage.machine in members and begin_s < outage.at_s < end_s
            ]
            if cuts:
                yield Round(begin_s, min(cuts) + self.timeout_s, members, committed=False)
                begin_s = min(cuts) + self.timeout_s
                continue
            yield Round(begin_s, end_s, members, committed=True)
            begin_s, before = max(begin_s + self.round_every_s, end_s), members

    def use(self, seconds: float) -> LinkUse:
        """Return the use of the links from the start on."""
        began = list(takewhile(lambda one: one.begin_s < seconds, self.rounds()))
        done = [one for one in began if one.committed and one.end_s <= seconds]
        sent = sum(len(o.members) * sent_bytes(self.round_bytes, len(o.members)) for o in done)
        return LinkUse(
            rounds=len(done),
            failed=sum(not one.committed for one in began),
            bytes_per_s=sent / self.machines / seconds,
            share=sum(min(one.end_s, seconds) - one.begin_s for one in began) / seconds,
        )

    def start(self, workers: Sequence[WorkerContext]) -> list[Start]:
        """Return the behaviour of each worker.

        Raises:
            ConfigError: the workers cannot be divided, or an outage names no machine.
        """
        if self.machines < 1 or len(workers) % self.machines:
            raise ConfigError(
                f"{self.machines} machines with {len(workers)} workers: wanted a number of "
                "machines that divides them"
            )
        for outage in self.outages:
            if not 0 <= outage.machine < self.machines:
                raise ConfigError(
                    f"machine {outage.machine} is to be unplugged, and there are {self.machines} "
                    f"with numbers 0 to {self.machines - 1}; name one of those"
                )
        state = workers[0].state
        copies = _Copies(self, state)

        def behaviour(worker: WorkerContext) -> Behaviour:
            own = worker.rank % self.machines
            for _ in worker.steps():
                while self.stop_workers and (rest_s := copies.rest_s(own)) > 0:
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

        return [partial(behaviour, worker) for worker in workers]


class _Copies:
    """The machines' copies of the parameters, and the rounds that change them.

    Copies change only when a worker adds a step and when a round ends, so it is enough to bring the
    rounds up to date whenever a worker looks at its copy or adds to it.
    """

    def __init__(self, scheme: ClusterRounds, state: SharedState) -> None:
        self._rounds, self._state = scheme.rounds(), state
        self._round, self._reading = next(self._rounds), True
        self.versions = [0] * scheme.machines
        self.gradients = [0] * scheme.machines  # since the movement that was committed last
        self._sent = [0] * scheme.machines
        if state.learner is not None:
            state.learner.replicate(scheme.machines)

    def advance(self, *, through: bool = False) -> None:
        """Apply what rounds did before now; `through` includes what they do now."""
        now = self._state.now
        while True:
            at_s = self._round.begin_s if self._reading else self._round.end_s
            if at_s > now or (at_s == now and not through):
                return
            if self._reading:
                self._read()
            else:
                self._end()

    def rest_s(self, machine: int) -> float:
        """Seconds until the present round of a machine ends; 0 without one."""
        self.advance()  # a step of another worker that ends now belongs to the movement
        now, one = self._state.now, self._round
        return one.end_s - now if machine in one.members and one.begin_s <= now else 0.0

    def _read(self) -> None:
        members = self._round.members
        self._sent = list(self.gradients)
        if self._state.learner is not None:
            self._state.learner.send([1 + m for m in members])
        self._reading = False

    def _end(self) -> None:
        if self._round.committed:
            members = self._round.members
            if self._state.learner is not None:
                self._state.learner.receive({1 + m: self._sent[m] for m in members})
            for m in members:
                self.versions[m] += 1
                self.gradients[m] -= self._sent[m]
        self._round, self._reading = next(self._rounds), True
