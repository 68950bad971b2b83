"""What the members of a cluster have in common, and what they tell each other of themselves."""

import hashlib
import json
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Layout
from mlxhog.base import plain_json
from mlxhog.config.config import TrainConfig
from mlxhog.display.streams import printable
from mlxhog.errors import ConfigError, MlxhogError, shown
from mlxhog.progress import ALONE, AWAY, IN_QUORUM, MachineReport

Float32 = NDArray[np.float32]


class ClusterError(MlxhogError):
    """A round cannot go on: members are out of reach, or do not have the same theta_s."""


# -- what all members have in common ---------------------------------------------------------------

_RESTART = "if all of them have left, restart mlxhog cluster start"  # it keeps the first identity
_SAME = "give all machines the same "
WAYS_OUT: Final = {
    "version": "install the same version of mlxhog on all machines",
    "layout": f"{_SAME}--model and --set",  # digest of names, shapes and places of parameters
    "tokenizer": f"{_SAME}--tokenizer, such as a tokenizer.json",  # digest
    "data": f"{_SAME}--data and --seq-len",  # digest of the text, with the length of a sequence
    "batch_size": f"{_SAME}--batch-size and --grad-accumulation",  # the order of the data counts it
    "seed": f"{_SAME}--seed",  # of initial values and of the order of the data
    "round_every": f"{_SAME}--round-every",
    "outer_lr": f"{_SAME}--cluster-outer-lr",
    "outer_momentum": f"{_SAME}--cluster-outer-momentum",
    "round_dtype": f"{_SAME}--round-dtype",
    "system": "Gloo cannot mix macOS and Linux (pytorch/gloo#383); take machines of one system",
}
"""Name of what must be equal on all members -> the way out where it is not."""

Identity = Mapping[str, Any]
"""By the names of `WAYS_OUT`."""


def identity_of(cluster: TrainConfig, layout: Layout, **of_run: Any) -> Identity:
    """Describe this machine's run: its configuration, layout, tokenizer, data, batch and seed.

    Numbers of its own, such as its workers, do not count.
    """
    places = [(slot.name, slot.shape, slot.offset) for slot in layout.slots.values()]
    return {
        "version": version("mlxhog"),
        "layout": hashlib.sha256(json.dumps(places).encode()).hexdigest(),
        "system": platform.system(),
        "round_every": cluster.round_every,
        "outer_lr": cluster.cluster_outer_lr,
        "outer_momentum": cluster.cluster_outer_momentum,
        "round_dtype": cluster.round_dtype,
        **of_run,
    }


def check_identity(own: Identity, others: str) -> None:
    """Raise ConfigError, with every difference, beside machines whose identity is this JSON."""
    try:
        theirs = dict(plain_json.loads(others))
    except (ValueError, TypeError):  # of another version
        theirs = {}
    problems = [
        f"cluster: {name} is {shown(value)} here and {shown(theirs.get(name))} on the other "
        f"machines; {WAYS_OUT[name]}"
        for name, value in own.items()
        if value != theirs.get(name)
    ]
    if problems:
        raise ConfigError("\n".join(problems) + f"; {_RESTART}")


# -- a round ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberMachine:
    """A machine of a cluster, as it describes itself at each join."""

    id: int  # no other machine has it, 0 < id < 2^63
    name: str  # for people; several machines may have it
    tokens: int = 0  # in theta_s
    rounds: int = 0  # that it has committed
    seen_s: float = 0.0  # seconds since its last join, if the clocks of the machines agree


@dataclass(frozen=True)
class Membership:
    """The members of one round."""

    round: int  # number of the round, from 0; the committed rounds before it
    rank: int  # of this member
    ids: tuple[int, ...]  # of the members, by rank
    machines: tuple[MemberMachine, ...] = ()  # members, and others that the lighthouse has seen

    @property
    def members(self) -> int:
        """Number of members, this one included."""
        return len(self.ids)

    def name(self, rank: int) -> str:
        """Name of a member, as it describes itself."""
        names = {one.id: one.name for one in self.machines}
        return shown(names.get(self.ids[rank], f"of rank {rank}"))

    def others(self) -> str:
        """Names of all members but this one."""
        return " or ".join(self.name(rank) for rank in range(self.members) if rank != self.rank)


class Roster:
    """The machines that the links of a run have met; used by one thread of its supervisor."""

    def __init__(self) -> None:
        self.is_alone = False  # whether this machine trains alone
        self._own, self._members = 0, tuple[int, ...]()
        self._met = dict[
            int, tuple[MemberMachine, float]
        ]()  # by id; with the time of the last join

    def meet(self, member: Membership, own: MemberMachine) -> None:
        """Take the members of the newest round, and this machine as it is now."""
        self._own, self._members = own.id, member.ids
        now_s = time.monotonic()
        for one in (*member.machines, own):
            self._met[one.id] = one, now_s - one.seen_s

    def reports(self) -> tuple[MachineReport, ...]:
        """One report per machine, this one first, then by name."""
        members = () if self.is_alone else self._members
        now_s, names, reports = time.monotonic(), Counter[str](), list[MachineReport]()
        met = sorted(self._met.values(), key=lambda x: (x[0].id != self._own, x[0].name, x[0].id))
        for one, seen_s in met:
            is_own, name = one.id == self._own, printable(one.name)
            names[name] += 1
            reports.append(
                MachineReport(
                    name=name if names[name] == 1 else f"{name} ({names[name]})",
                    state=IN_QUORUM if one.id in members else ALONE if is_own else AWAY,
                    tokens=one.tokens,
                    rounds=one.rounds,
                    seen_s=now_s - seen_s,
                    is_own=is_own,
                )
            )
        return tuple(reports)


# Bounds of what a member with the token may send, beside the values that the others have.
MAX_RATIO: Final = 100.0  # of what others send to what the members have, by root mean square
MIN_RMS: Final = 0.1  # parameters that begin at zero, too, may move
MAX_RMS: Final = 1e4  # of parameters; no number of rounds leads further
MAX_SECONDS: Final = 366 * 86_400
MAX_COUNT: Final = (1 << 53) - 1
MAX_TOKENS_PER_S: Final = 1e8  # of a cluster
SLACK_S: Final = 3600.0  # the clocks of machines that wait for each other differ


@dataclass(frozen=True)
class GroupState:
    """What all members have after the same rounds, and a joiner loads."""

    round: int  # committed rounds
    tokens: int  # tokens in them, of all members; the position of the schedule
    anchor: Float32  # theta_s, (n,) float32
    velocity: Float32  # v of the outer optimizer, (n,) float32
    seconds: float = 0.0  # of training since the cluster began

    @property
    def digest(self) -> bytes:
        """SHA-256 of theta_s, 32 bytes; the same on all members."""
        return hashlib.sha256(self.anchor.data).digest()

    def check(self, own: "GroupState") -> None:
        """Raise ClusterError unless a machine with a state of its own may take over this one.

        Another member sent it, perhaps with nonsense that is finite.
        """
        n, most = len(own.anchor), own.max_movement()
        for name in ("anchor", "velocity"):
            array = getattr(self, name)
            if not (array.dtype == np.float32 and array.shape == (n,) and np.isfinite(array).all()):
                raise self._wrong(f"is not {n:,} finite float32")
            if (rms := root_mean_square(array)) > most:
                raise self._wrong(f"has numbers of {rms:.3g} on average, expected up to {most:.3g}")
        seconds, tokens = self.seconds, self.tokens
        if not (isinstance(seconds, int | float) and 0 <= seconds <= MAX_SECONDS):
            raise self._wrong(f"has trained for {shown(seconds)} s, expected up to {MAX_SECONDS:,}")
        max_tokens = own.tokens + int(MAX_TOKENS_PER_S * (seconds + SLACK_S))
        if not (type(tokens) is int and 0 <= tokens <= max_tokens):
            raise self._wrong(f"has {shown(tokens)} tokens, expected up to {max_tokens:,}")
        if not (type(self.round) is int and 0 <= self.round <= MAX_COUNT):
            raise self._wrong("has no such number")

    def max_movement(self) -> float:
        """Largest root mean square that what other members send may have beside this state.

        A function of what all members share, so they refuse the same rounds.
        """
        shared = max(MIN_RMS, *map(root_mean_square, (self.anchor, self.velocity)))
        return min(MAX_RATIO * shared, MAX_RMS)

    def _wrong(self, problem: str) -> ClusterError:
        return ClusterError(
            f"cluster: the state of another member, of round {shown(self.round)}, {problem}; this "
            "machine keeps its own. Give the token only to machines of this run"
        )


def root_mean_square(array: Float32) -> float:
    """Root mean square of finite numbers; infinity if their squares are too large."""
    with np.errstate(over="ignore"):
        return math.sqrt(float(np.dot(array, array)) / max(1, len(array)))


Offer = Callable[[], GroupState]
"""Gives the state of this member, for one that joins; called from any thread during `join`."""
Describe = Callable[[], MemberMachine]
"""Gives this member as the others shall see it."""
