"""Members of a cluster: the identity that they share, their state, and bounds on what they send."""

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
    """A round that fails: members are out of reach, or have different outer parameters."""


_RESTART = "if all of them have left, restart mlxhog cluster start"  # it keeps the first identity
_SAME = "give all machines the same "
WAYS_OUT: Final = {
    "version": "install the same version of mlxhog on all machines",
    "layout": f"{_SAME}--model and --set",  # digest of names, shapes and places of parameters
    "tokenizer": f"{_SAME}--tokenizer, such as a tokenizer.json",  # digest
    "data": f"{_SAME}--data and --seq-len",  # digest of the text, with the length of a sequence
    "batch_size": f"{_SAME}--batch-size and --grad-accumulation",  # the order of the data counts it
    "base": f"{_SAME}--init-from and --base-weights",  # digest of the weights beside an adapter
    "seed": f"{_SAME}--seed",  # of initial values and of the order of the data
    "round_every": f"{_SAME}--round-every",
    "outer_lr": f"{_SAME}--cluster-outer-lr",
    "outer_momentum": f"{_SAME}--cluster-outer-momentum",
    "round_dtype": f"{_SAME}--round-dtype",
    "system": "Gloo cannot mix macOS and Linux (pytorch/gloo#383); take machines of one system",
}
"""Name of what must be equal on all members -> the way out where it is not."""

Identity = Mapping[str, Any]  # by the names of `WAYS_OUT`


def identity_of(cluster: TrainConfig, layout: Layout, **of_run: Any) -> Identity:
    """Describe this machine's run: its configuration, layout, tokenizer, data, batch and seed.

    Options that may differ between machines, such as workers, are left out.
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
    """Raise ConfigError with every difference from the identity of the other machines, as JSON."""
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


@dataclass(frozen=True)
class MemberMachine:
    """A machine of a cluster, as it describes itself at each join."""

    id: int  # no other machine has it, 0 < id < 2^63
    name: str  # for people; several machines may have it
    tokens: int = 0  # in the outer parameters
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
        """Return the name of a member, as it describes itself."""
        names = {one.id: one.name for one in self.machines}
        return shown(names.get(self.ids[rank], f"of rank {rank}"))

    def others(self) -> str:
        """Return the names of all members but this one."""
        return " or ".join(self.name(rank) for rank in range(self.members) if rank != self.rank)


class ClusterMembers:
    """The machines of a run's cluster; used by one thread of its supervisor."""

    def __init__(self) -> None:
        self.is_alone = False  # whether this machine trains alone
        self._own, self._members = 0, tuple[int, ...]()
        self._known = dict[int, tuple[MemberMachine, float]]()  # by id; time of the last join

    def update(self, member: Membership, own: MemberMachine) -> None:
        """Record the members of the newest round, and this machine as it is now."""
        self._own, self._members = own.id, member.ids
        now_s = time.monotonic()
        for one in (*member.machines, own):
            self._known[one.id] = one, now_s - one.seen_s

    def reports(self) -> tuple[MachineReport, ...]:
        """Return a report per machine, this one first, then by name."""
        members = () if self.is_alone else self._members
        now_s, names, reports = time.monotonic(), Counter[str](), list[MachineReport]()
        known = self._known.values()
        for one, seen_s in sorted(known, key=lambda x: (x[0].id != self._own, x[0].name, x[0].id)):
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


# Bounds on what a member with the token may send, relative to the state of the others.
MAX_RATIO: Final = 100.0  # of what others send to what the members have, by root mean square
MIN_RMS: Final = 0.1  # for parameters that begin at zero
MAX_RMS: Final = 1e4  # of parameters, after any number of rounds
MAX_SECONDS: Final = 366 * 86_400
MAX_COUNT: Final = (1 << 53) - 1
MAX_TOKENS_PER_S: Final = 1e8  # of a cluster
SLACK_S: Final = 3600.0  # the clocks of machines that wait for each other differ


@dataclass(frozen=True)
class GroupState:
    """State that all members share after a round, and that a joining machine loads."""

    round: int  # committed rounds
    tokens: int  # tokens in them, of all members; the position of the schedule
    params: Float32  # the outer parameters, (n,) float32
    velocity: Float32  # of the outer optimizer, (n,) float32
    seconds: float = 0.0  # of training since the cluster began

    @property
    def digest(self) -> bytes:
        """SHA-256 of the outer parameters, 32 bytes; the same on all members."""
        return hashlib.sha256(self.params.data).digest()

    def check(self, own: "GroupState") -> None:
        """Raise ClusterError unless a machine whose state is `own` may load this one.

        Another member sent it, perhaps with finite nonsense.
        """
        n, most = len(own.params), own.max_rms()
        for name in ("params", "velocity"):
            array = getattr(self, name)
            if not (array.dtype == np.float32 and array.shape == (n,) and np.isfinite(array).all()):
                raise self._wrong(f"is not {n:,} finite float32")
            if (rms := root_mean_square(array)) > most:
                raise self._wrong(f"has a root mean square of {rms:.3g}, expected up to {most:.3g}")
        seconds, tokens = self.seconds, self.tokens
        if not (isinstance(seconds, int | float) and 0 <= seconds <= MAX_SECONDS):
            raise self._wrong(f"has trained for {shown(seconds)} s, expected up to {MAX_SECONDS:,}")
        max_tokens = own.tokens + int(MAX_TOKENS_PER_S * (seconds + SLACK_S))
        if not (type(tokens) is int and 0 <= tokens <= max_tokens):
            raise self._wrong(f"has {shown(tokens)} tokens, expected up to {max_tokens:,}")
        if not (type(self.round) is int and 0 <= self.round <= MAX_COUNT):
            raise self._wrong("has an invalid round number")

    def max_rms(self) -> float:
        """Return the largest root mean square of arrays that other members may send.

        It depends on the shared state alone, so that all members refuse the same rounds.
        """
        shared = max(MIN_RMS, *map(root_mean_square, (self.params, self.velocity)))
        return min(MAX_RATIO * shared, MAX_RMS)

    def _wrong(self, problem: str) -> ClusterError:
        return ClusterError(
            f"cluster: the state of another member, of round {shown(self.round)}, {problem}; this "
            "machine keeps its own. Give the token only to machines of this run"
        )


def root_mean_square(array: Float32) -> float:
    """Return the root mean square of finite values; infinity if their squares overflow."""
    with np.errstate(over="ignore"):
        return math.sqrt(float(np.dot(array, array)) / max(1, len(array)))


GetState = Callable[[], GroupState]
"""Returns the state of this member for a joining machine; called from any thread in `join`."""
Describe = Callable[[], MemberMachine]  # returns the description of this member that the others see
