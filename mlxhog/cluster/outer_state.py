"""The sidecar's state in the arena: outer parameters, outer momentum, and its counts.

    segment         dtype    meaning
    outer.params    float32  the outer parameters
    outer.velocity  float32  momentum of the outer optimizer
    outer.read      float32  the last snapshot of the parameters, or the outer parameters in its
                             place; outer.params - outer.read is added to the parameters
    outer.counts    uint8    these words:

    begun, id           whether outer.params is set; id of this machine, kept by later sidecars
    changing            set while outer.params, its counts and the parameters change
    sent                whether the group got the last buffer, and no join has told of its round
    sent_tokens         tokens of this machine when that buffer was read
    round, tokens       as in `GroupState`
    rounds, committed   rounds that this machine has committed, and its tokens in them
    lost                tokens of this machine that are declared lost
    refused, unequal    rounds not committed, or whose members had different outer parameters
    loads, torn         states merged from others; sidecars that died while `changing` was set
    members, rank       of the last round that this machine joined; joined_ns, when (monotonic)
    bytes               of averaged buffers
    committed_before    tokens of this run's earlier calls; ms_before, their time of training
    ready, last         whether this machine fits the others; whether a round follows training

A sidecar may be killed at any instruction; the next one begins from here. A sidecar that finds
`changing` set begins as a new machine does, with the parameters as outer parameters, and loads the
state of the members: what this machine has trained since its last round is lost, and nothing counts
twice. Another member may have committed a buffer that was sent. A machine that then loads a newer
state drops the outer gradient that it sent: the state may have it.
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
from mlxhog.base import darwin
from mlxhog.cluster.group import Float32, GroupState
from mlxhog.optim import updates

COUNTS = "outer.counts"
KINDS = ("params", "velocity")  # segments that a checkpoint keeps, without the prefix "outer."
TABLE = Table(
    sidecar=(
        1,
        "begun id changing sent sent_tokens round tokens rounds committed lost refused unequal "
        "loads torn members rank joined_ns bytes committed_before ms_before ready last",
    )
)


def segments() -> dict[str, tuple[str, int]]:
    """Return the segments of the table above, for `arena.plan`."""
    copies = ("outer.params", "outer.velocity", "outer.read")
    return {**dict.fromkeys(copies, ("float32", PARAMETER_COPY)), COUNTS: ("uint8", TABLE.n_bytes)}


def own_epochs(arena: Arena) -> int:
    """Return a machine's first epoch, below 2^31; each machine has its own order of the text."""
    return TABLE.open(arena.segment(COUNTS))["id"] % (1 << 31)


class OuterState:
    """The sidecar's state; one process writes it, any process may read its `words`."""

    def __init__(
        self,
        arena: Arena,
        slot: int | None = None,
        writing: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Wrap the segments for the sidecar in a worker slot, or for the arena's creator.

        `writing` is entered while the parameters are written.
        """
        self.arena, self._slot, self._writing = arena, slot, writing
        self.words = TABLE.open(arena.segment(COUNTS))
        self.n = arena.layout.probe.offset  # floats that stand for parameters
        self.round_tokens = 0  # of this machine, in the last round that it committed

    def of(self, kind: str) -> Float32:
        """Return the parameters in a segment, (n,) float32, shared."""
        return self.arena.segment(f"outer.{kind}")[: self.n]

    def state(self) -> GroupState:
        """Return a copy of the state for a joining member."""
        words, (outer, velocity) = self.words, (self.of(kind).copy() for kind in KINDS)
        return GroupState(words["round"], words["tokens"], outer, velocity, self.seconds())

    @property
    def digest(self) -> bytes:
        """`GroupState.digest` of the state, without a copy of it."""
        return hashlib.sha256(self.of("params").data).digest()

    def committed(self) -> int:
        """Return the committed tokens of this machine, earlier calls of the run included."""
        return self.words["committed_before"] + self.words["committed"]

    def seconds(self) -> float:
        """Return the seconds of training since the cluster began, as this machine knows them."""
        counters = self.arena.counters
        start_ns = counters.load("start_ns")
        own_ms = (monotonic_ns() - start_ns) / 1e6 if start_ns else 0.0
        return (self.words["ms_before"] + counters.load("ms_elsewhere") + own_ms) / 1e3

    def trained(self) -> int:
        """Return the tokens that this machine has trained on."""
        return self.arena.counters["tokens"]

    def uncommitted(self, tokens: int) -> int:
        """Return how many of the first `tokens` of this machine are neither committed nor lost."""
        return tokens - self.words["committed"] - self.words["lost"]

    def initialize(self) -> None:
        """Copy the parameters to the outer ones, without momentum; no effect on a later call.

        Concurrency: no worker may write.
        """
        if not self.words["begun"]:
            self.of("params")[:] = self.arena.params[: self.n]
            self.words["id"] = 1 + secrets.randbits(62)  # a machine that the cluster does not know
            self.words["begun"] = 1

    def recover(self) -> None:
        """Begin as a new machine if the last sidecar died amid a change.

        The next sidecar calls it, and the supervisor before a checkpoint.
        """
        if self.words["changing"]:
            self.words.add("torn")
            self.words.add("lost", self.uncommitted(self.trained()))
            updates.snapshot(self.of("params"), self.arena.params[: self.n])
            self.of("velocity")[:] = 0
            for name in ("round", "sent", "changing"):
                self.words[name] = 0

    def snapshot(self) -> int:
        """Copy the parameters to `outer.read`; returns the tokens of this machine in the copy.

        Without new tokens the outer parameters are copied: a movement without weight, of a
        checkpoint or of a step that ends now, stays in the parameters for a later round.
        """
        tokens = self.trained()  # first: a step that ends meanwhile counts in the next round
        source = self.arena.params[: self.n] if self.uncommitted(tokens) else self.of("params")
        updates.snapshot(self.of("read"), source)
        return tokens

    def commit(self, state: GroupState) -> None:
        """Apply the state after a round whose mean includes this machine."""
        self.round_tokens = self.uncommitted(self.words["sent_tokens"])
        self._apply(state, rounds=1, committed=self.round_tokens)

    def merge(self, state: GroupState) -> None:
        """Load the members' state, and add this machine's own movement to it.

        A newer state may include what was sent last: that is dropped, and its tokens count as lost.
        """
        words = self.words
        words.add("loads")
        if (ahead_s := state.seconds - self.seconds()) > 0:
            self.arena.counters.add("ms_elsewhere", round(1e3 * ahead_s))
        if state.round == words["round"] or not words["sent"]:
            words["sent"] = 0  # no member has what was sent; it goes into a later round
            self.of("read")[:] = self.of("params")
        self._apply(state, lost=self.uncommitted(words["sent_tokens"]) if words["sent"] else 0)

    def _apply(self, state: GroupState, **counts: int) -> None:
        """Set the state, add to some words, and add outer.params - outer.read to the parameters.

        The addition is lock-free beside the workers, and counts as an update in the version.
        """
        arena, words = self.arena, self.words
        locks, mode = arena.locks(self._slot), updates.WRITE_MODES[arena.write]
        counters = SeqlockCounters(
            arena, arena.workers.host_slot if self._slot is None else self._slot
        )
        with self._writing():
            words["changing"] = 1
            np.copyto(self.of("params"), state.params)
            np.copyto(self.of("velocity"), state.velocity)
            words["round"], words["tokens"] = state.round, state.tokens
            for name, count in counts.items():
                words.add(name, count)
            self._count_elsewhere()
            step = self.of("params") - self.of("read")
            counters.begin_update()
            for slot in arena.layout.slots.values():
                part = step[slot.offset : slot.offset + slot.size].reshape(slot.shape)
                updates.add(arena.params, slot, part, locks=locks, mode=mode)
            arena.counters.add("version")
            counters.end_update()
            words["sent"] = words["changing"] = 0

    def _count_elsewhere(self) -> None:
        """Set the schedule's position to the tokens of all machines."""
        others = self.words["tokens"] - self.committed()
        self.arena.counters.store("tokens_elsewhere", max(0, others))

    def saved(self) -> tuple[dict[str, Float32], dict[str, int]]:
        """Return arrays by segment, and counts, for a checkpoint; no sidecar may write.

        All machines save the same outer parameters of a round, so any of them can resume it. The
        parameters are saved after this call.
        """
        self.recover()
        return {f"outer.{kind}": self.of(kind) for kind in KINDS}, {
            **{name: self.words[name] for name in ("round", "tokens", "sent", "id")},
            "committed": self.committed(),
            "ms_elsewhere": self.arena.counters.load("ms_elsewhere"),
            "host": _host(),
        }

    def resume(
        self,
        arrays: Mapping[str, Float32],
        counts: Mapping[str, int],
        *,
        seconds: float,
        is_last: bool,
    ) -> None:
        """Start as `initialize`, but at the outer parameters and momentum of a checkpoint.

        Tokens that waited for a round count as none; their movement is sent with the next tokens.
        If it was sent, or training continued after the checkpoint, other members may have it: it is
        dropped if they are ahead. The run had trained for `seconds`, and nothing after the
        checkpoint if that `is_last`.
        """
        self.initialize()
        words = self.words
        for kind in KINDS:
            self.of(kind)[:] = arrays[f"outer.{kind}"]
        words["round"], words["tokens"] = counts["round"], counts["tokens"]
        if counts.get("host") == _host():  # a copy of the run elsewhere is another machine
            words["id"] = counts["id"]
        words["committed_before"], words["ms_before"] = counts["committed"], round(1e3 * seconds)
        self.arena.counters.store("ms_elsewhere", counts["ms_elsewhere"])
        self._count_elsewhere()
        if counts["sent"] or not is_last:
            updates.snapshot(self.of("read"), self.arena.params[: self.n])
            words["sent_tokens"], words["sent"] = 0, 1

    def report(self) -> dict[str, object]:
        """Return the machine's counts for run.json and reports, plain JSON values.

        Tokens that this machine trained are committed, lost, or wait for a round. `joined_s_ago` is
        the age of its last join, None before the first.
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
            "tokens_waiting": self.uncommitted(trained),
            "outer_digest": self.digest.hex(),
        }


def _host() -> int:
    name = darwin.host_uuid() or platform.node()  # the name of a Mac changes with its network
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest())
