"""A link's state in the arena: theta_s, the outer momentum, and the link's counts.

    segment        dtype    meaning
    link.anchor    float32  theta_s
    link.velocity  float32  v of the outer step
    link.read      float32  the parameters that the link read, or what stands for them: the
                            difference of theta_s from it is added to the parameters
    link.numbers   uint8    these words:

    begun, id           whether theta_s is set; id of this machine, that of later links, too
    changing            set while theta_s, its numbers and the parameters change
    sent                whether the group got the last buffer, and no join has told of its round
    sent_tokens         tokens of this machine when that buffer was read
    round, tokens       as in `GroupState`
    rounds, committed   rounds that this machine has committed, and its tokens in them
    lost                tokens of this machine that are declared lost
    refused, unequal    rounds that were not committed, or had members of another theta_s
    loads, torn         states taken over from others; links that died while `changing` was set
    members, rank       of the last round that this machine joined; joined_ns, when (monotonic)
    bytes               of averaged buffers
    committed_before    tokens of this run's earlier calls; ms_before, their time of training
    ready, last         whether this machine fits the others; whether a round follows training

A link may be killed at any instruction; the next one begins from here. A link that finds `changing`
set begins as a new machine does, with the parameters as theta_s, and loads the state of the
members: what this machine has trained since its last round is lost, and nothing counts twice.
Another member may have committed a buffer that was sent. A machine that then loads a newer state
gives up the movement that it sent: the state may have it.
"""

import hashlib
import platform
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.published import SeqlockCounters
from mlxhog.arena.words import Table
from mlxhog.cluster.group import Float32, GroupState
from mlxhog.optim import updates

NUMBERS = "link.numbers"
KINDS = ("anchor", "velocity")
"""Segments that a checkpoint keeps, without "link."."""
TABLE = Table(
    link=(
        1,
        "begun id changing sent sent_tokens round tokens rounds committed lost refused unequal "
        "loads torn members rank joined_ns bytes committed_before ms_before ready last",
    )
)


def segments() -> dict[str, tuple[str, int]]:
    """The segments of the table above, as `arena.plan` takes them."""
    copies = ("link.anchor", "link.velocity", "link.read")
    return {**dict.fromkeys(copies, ("float32", PARAMETER_COPY)), NUMBERS: ("uint8", TABLE.n_bytes)}


def own_epochs(arena: Arena) -> int:
    """The first epoch of a machine, below 2^31: machines train on different orders of the text."""
    return TABLE.open(arena.segment(NUMBERS))["id"] % (1 << 31)


class Anchor:
    """The state of the link; one process writes it, and any may read its `words`."""

    def __init__(
        self,
        arena: Arena,
        slot: int | None = None,
        writing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Wrap the segments for the link in a worker slot, or for the arena's creator.

        `writing` is entered while the difference is added to the parameters.
        """
        self.arena, self._slot, self._writing = arena, slot, writing
        self.words = TABLE.open(arena.segment(NUMBERS))
        self.n = arena.layout.probe.offset  # floats that stand for parameters
        self.round_tokens = 0  # of this machine, in the last round that it committed

    def of(self, kind: str) -> Float32:
        """The floats of a segment that stand for parameters, (n,) float32, shared."""
        return self.arena.segment(f"link.{kind}")[: self.n]

    def state(self) -> GroupState:
        """A copy of the state, for a member that joins."""
        anchor, velocity = self.of("anchor").copy(), self.of("velocity").copy()
        return GroupState(
            self.words["round"], self.words["tokens"], anchor, velocity, self.seconds()
        )

    @property
    def digest(self) -> bytes:
        """`GroupState.digest` of the state, without a copy of it."""
        return hashlib.sha256(self.of("anchor").data).digest()

    def committed(self) -> int:
        """Tokens of this machine that it has committed, in earlier calls of the run, too."""
        return self.words["committed_before"] + self.words["committed"]

    def seconds(self) -> float:
        """Seconds of training since the cluster began, as far as this machine knows."""
        counters = self.arena.counters
        start_ns = counters.load("start_ns")
        own_ms = (monotonic_ns() - start_ns) / 1e6 if start_ns else 0.0
        return (self.words["ms_before"] + counters.load("ms_elsewhere") + own_ms) / 1e3

    def trained(self) -> int:
        """Tokens that this machine has trained on."""
        return self.arena.counters["tokens"]

    def fresh(self, tokens: int) -> int:
        """Of the first `tokens` tokens of this machine, those that are not committed or lost."""
        return tokens - self.words["committed"] - self.words["lost"]

    # -- the round -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start at the parameters, without momentum; later links change nothing.

        Concurrency: no worker may move.
        """
        if not self.words["begun"]:
            self.of("anchor")[:] = self.arena.params[: self.n]
            self.words["id"] = 1 + secrets.randbits(62)  # a machine that the cluster does not know
            self.words["begun"] = 1

    def settle(self) -> None:
        """Begin as a new machine does if the last link died amid a change; for its successor.

        The supervisor calls it, too, before a checkpoint.
        """
        if self.words["changing"]:
            self.words.add("torn")
            self.words.add("lost", self.fresh(self.trained()))
            updates.snapshot(self.of("anchor"), self.arena.params[: self.n])
            self.of("velocity")[:] = 0
            for name in ("round", "sent", "changing"):
                self.words[name] = 0

    def read(self) -> int:
        """Copy the parameters to `link.read`; returns tokens of this machine that are in it.

        Without new tokens theta_s stands for the parameters: a movement that no token weighs, of
        a checkpoint or of a step that ends now, stays in them for a later round.
        """
        tokens = self.trained()  # first: a step that ends meanwhile counts in the next round
        source = self.arena.params[: self.n] if self.fresh(tokens) else self.of("anchor")
        updates.snapshot(self.of("read"), source)
        return tokens

    def commit(self, state: GroupState) -> None:
        """Take the state after a round whose mean has this machine's movement in it."""
        self.round_tokens = self.fresh(self.words["sent_tokens"])
        self._take(state, rounds=1, committed=self.round_tokens)

    def load(self, state: GroupState) -> None:
        """Take over the members' state, and add this machine's own movement to it.

        If the state is newer, it may have what was sent last: that is given up, and its tokens are
        declared lost.
        """
        words = self.words
        words.add("loads")
        if (ahead_s := state.seconds - self.seconds()) > 0:
            self.arena.counters.add("ms_elsewhere", round(1e3 * ahead_s))
        if state.round == words["round"] or not words["sent"]:
            words["sent"] = 0  # no member has what was sent; it goes into a later round
            self.of("read")[:] = self.of("anchor")
        self._take(state, lost=self.fresh(words["sent_tokens"]) if words["sent"] else 0)

    def _take(self, state: GroupState, **counts: int) -> None:
        """Take a state, add to some words, and add theta_s less `link.read` to the parameters.

        The addition is lock-free beside the workers. It counts in the version, so gradients that
        were read before it are one update older.
        """
        arena, words = self.arena, self.words
        locks, mode = arena.locks(self._slot), updates.WRITE_MODES[arena.write]
        marks = SeqlockCounters(
            arena, arena.workers.host_slot if self._slot is None else self._slot
        )
        with self._writing():
            words["changing"] = 1
            np.copyto(self.of("anchor"), state.anchor)
            np.copyto(self.of("velocity"), state.velocity)
            words["round"], words["tokens"] = state.round, state.tokens
            for name, count in counts.items():
                words.add(name, count)
            self._count_elsewhere()
            step = self.of("anchor") - self.of("read")
            marks.begin_update()
            for slot in arena.layout.slots.values():
                part = step[slot.offset : slot.offset + slot.size].reshape(slot.shape)
                updates.add(arena.params, slot, part, locks=locks, mode=mode)
            arena.counters.add("version")
            marks.end_update()
            words["sent"] = words["changing"] = 0

    def _count_elsewhere(self) -> None:
        """Move the schedule to the tokens of all machines."""
        others = self.words["tokens"] - self.committed()
        self.arena.counters.store("tokens_elsewhere", max(0, others))

    # -- checkpoints and the report --------------------------------------------------------------

    def saved(self) -> tuple[dict[str, Float32], dict[str, int]]:
        """Arrays by segment, and numbers, for a checkpoint; no link may write.

        Every machine of a cluster saves the same theta_s of a round, so any of them can resume it.
        The parameters are saved after this call.
        """
        self.settle()
        return {f"link.{kind}": self.of(kind) for kind in KINDS}, {
            **{name: self.words[name] for name in ("round", "tokens", "sent", "id")},
            "committed": self.committed(),
            "ms_elsewhere": self.arena.counters.load("ms_elsewhere"),
            "host": _host(),
        }

    def resume(
        self,
        arrays: Mapping[str, Float32],
        numbers: Mapping[str, int],
        *,
        seconds: float,
        is_last: bool,
    ) -> None:
        """Start as `begin`, but at the theta_s and v of a checkpoint.

        Tokens that waited count as none; the movement that they made is sent with the next ones.
        If it was sent, or training continued after the checkpoint, other members may have it: it is
        given up if they are ahead. The run had trained for `seconds`, and nothing after the
        checkpoint if that `is_last`.
        """
        self.begin()
        words = self.words
        for kind in KINDS:
            self.of(kind)[:] = arrays[f"link.{kind}"]
        words["round"], words["tokens"] = numbers["round"], numbers["tokens"]
        if numbers.get("host") == _host():  # a copy of the run elsewhere is another machine
            words["id"] = numbers["id"]
        words["committed_before"], words["ms_before"] = numbers["committed"], round(1e3 * seconds)
        self.arena.counters.store("ms_elsewhere", numbers["ms_elsewhere"])
        self._count_elsewhere()
        if numbers["sent"] or not is_last:
            updates.snapshot(self.of("read"), self.arena.params[: self.n])
            words["sent_tokens"], words["sent"] = 0, 1

    def report(self) -> dict[str, object]:
        """The machine's part in the cluster, for run.json and reports; plain JSON values.

        Tokens that this machine trained are committed, declared lost, or wait for a round.
        `joined_s_ago` is the age of its last join, None before the first.
        """
        words, trained = self.words, self.trained()
        names = ("rounds", "refused", "loads", "unequal", "torn", "members", "rank", "bytes")
        joined_ns = words["joined_ns"]
        return {
            **{name: words[name] for name in (*names, "round")},
            "joined_s_ago": (monotonic_ns() - joined_ns) / 1e9 if joined_ns else None,
            "cluster_tokens": words["tokens"],
            "tokens_trained": trained,
            "tokens_committed": words["committed"],
            "tokens_lost": words["lost"],
            "tokens_waiting": self.fresh(trained),
            "theta_s": self.digest.hex(),
        }


def _host() -> int:
    return int.from_bytes(hashlib.blake2b(platform.node().encode(), digest_size=6).digest())
