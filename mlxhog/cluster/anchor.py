"""A link's state in the arena: theta_s, the outer momentum, and how far a round has come.

A link may be killed at any instruction; the next one begins from here. All that a round changes is
written to the side that is not in use; one atomic store, of `generation`, makes it valid.

    segment          dtype    meaning
    link.anchor.S    float32  theta_s of side S; the side in use is generation mod 2
    link.velocity.S  float32  v of the outer step
    link.residual.S  float32  rounding that the next buffer makes up for; with bfloat16 only
    link.read        float32  the parameters that the link read, or what stands for them: the
                              difference of the side's theta_s from it is added to the parameters
    link.included.S  int64    `State.included`: pairs (id, tokens) in its order, id 0 for none
    link.numbers     uint8    two lines with `WORDS`, then a line with `RECORD` for each side

The difference is added parameter by parameter. `adding` and `added` count them, so the next link
continues behind the last one. If the last link died while it added to a parameter, the next sets
this parameter to theta_s: the machine loses what it trained there in this round, and nothing counts
twice. `sent` marks a buffer whose mean another member may have committed; `link.read` is then what
was sent, and the tokens in the state that this machine loads next say whether one did
(`State.included`).
"""

from __future__ import annotations

import hashlib
import platform
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY, Slot
from mlxhog.arena.marks import Marks
from mlxhog.arena.process import monotonic_ns
from mlxhog.cluster.group import Float32, State
from mlxhog.errors import CheckpointError
from mlxhog.optim import updates
from mlxhog.report import machines
from mlxhog.strategies.control_words import LINE, Words

NUMBERS, READ = "link.numbers", "link.read"
SIDES = (0, 1)
WORDS = (
    "generation",  # 1 + number of changes of theta_s
    "sent",  # the generation whose buffer was given to the group; 0 for none
    "sent_tokens",  # tokens of this machine when that buffer was read
    "adding", "added",  # 2^32 generation + number of parameters, see above
    "refused",  # rounds that were not committed
    "loads",  # states taken over from others
    "unequal",  # rounds in which members had another theta_s
    "torn",  # parameters that were set to theta_s
    "members", "rank",  # of the last round that this machine joined
    "joined_ns",  # when that was, monotonic
    "bytes",  # of averaged buffers
    "committed_before", "ms_before",  # of this run's earlier calls: tokens, and time of training
    "id",  # of this machine in its cluster, see `Machine`; later links have the same
    "ready",  # whether a link has seen that this machine fits the others
    "last",  # whether a link may play a round after training
)  # fmt: skip
RECORD = ("round", "tokens", "rounds", "committed", "lost", "lost_before")
"""Of a side: as in `State`; rounds that this machine committed, its tokens in them, its tokens that
are declared lost, and tokens of earlier calls that were committed and are lost."""
MOST_MACHINES = 256
"""Machines in `State.included`; beyond these the ones are dropped that are away for longest. One of
them that comes back declares all its committed tokens lost."""
_HIGH = 1 << 32
_OF = "tokens_of."  # names the tokens of a machine in a checkpoint


def segments(*, residual: bool) -> dict[str, tuple[str, int]]:
    """The segments of the table above, as `arena.plan` takes them."""
    kinds = ("anchor", "velocity", *(("residual",) if residual else ()))
    copies = [f"link.{kind}.{side}" for kind in kinds for side in SIDES]
    return {
        **dict.fromkeys((*copies, READ), ("float32", PARAMETER_COPY)),
        **{f"link.included.{side}": ("int64", 2 * MOST_MACHINES) for side in SIDES},
        NUMBERS: ("uint8", LINE * (2 + len(SIDES))),
        **machines.segment(),
    }


def own_epochs(arena: Arena) -> int:
    """The first epoch of this machine, below 2^31: machines train on different orders of the text.

    Args:
        arena: of a run whose link, or its supervisor, has drawn an id.
    """
    return Words(arena.segment(NUMBERS)).load(*Anchor.place("id")) % (1 << 31)


class Anchor:
    """The state of the link; one process writes it, and any may read its numbers."""

    def __init__(
        self,
        arena: Arena,
        slot: int | None = None,
        writing: Callable[[], AbstractContextManager[object]] = nullcontext,
        stopped: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Wrap the segments.

        Args:
            arena: with the segments of this module.
            slot: worker slot of the link, for its locks; None is that of the arena's creator.
            writing: entered while the difference is added to the parameters.
            stopped: entered from the reading of a round until its difference is added.
        """
        self.arena, self._slot = arena, slot
        self._words = Words(arena.segment(NUMBERS))
        self.writing, self.stopped = writing, stopped
        self._places = list(arena.layout.slots.values())
        self.n = arena.layout.probe.offset
        self.has_residual = "link.residual.0" in arena.layout.segments
        self.round_tokens = 0  # of this machine, in the last round that it committed

    # -- numbers ---------------------------------------------------------------------------------

    def number(self, name: str) -> int:
        """One of `WORDS`, or of `RECORD` for the side in use."""
        return self._words.load(*self.place(name, self.side))

    def store(self, name: str, value: int) -> None:
        """Set such a number."""
        self._words.store(*self.place(name, self.side), value)

    def count(self, name: str, by: int = 1) -> None:
        """Add to such a number, which only this process writes."""
        self.store(name, self.number(name) + by)

    @staticmethod
    def place(name: str, side: int = 0) -> tuple[int, int]:
        """Line and word of a number."""
        return (0, WORDS.index(name)) if name in WORDS else (2 + side, RECORD.index(name))

    @property
    def side(self) -> int:
        """The side in use."""
        return self._words.load(0, 0) % 2

    def of(self, kind: str, side: int | None = None) -> Float32:
        """The numbers of a kind that stand for parameters, (n,) float32, shared."""
        side = self.side if side is None else side
        return self.arena.segment(READ if kind == "read" else f"link.{kind}.{side}")[: self.n]

    def state(self) -> State:
        """A copy of the state, for a member that joins."""
        return State(
            self.number("round"),
            self.number("tokens"),
            self.of("anchor").copy(),
            self.of("velocity").copy(),
            self.seconds(),
            self.included(),
        )

    @property
    def digest(self) -> bytes:
        """`State.digest` of the state, without a copy of it."""
        return hashlib.sha256(self.of("anchor").data).digest()

    def included(self) -> dict[int, int]:
        """`State.included` of the side in use."""
        table = self.arena.segment(f"link.included.{self.side}").reshape(-1, 2)
        return {id: tokens for id, tokens in table.tolist() if id}

    def seconds(self) -> float:
        """Seconds of training since the cluster began, as far as this machine knows."""
        counters = self.arena.counters
        start_ns = counters.load("start_ns")
        own_ms = (monotonic_ns() - start_ns) / 1e6 if start_ns else 0.0
        return (self.number("ms_before") + counters.load("ms_elsewhere") + own_ms) / 1e3

    def trained(self) -> int:
        """Tokens that this machine has trained on."""
        return self.arena.counters.load("tokens")

    # -- the round -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start at the parameters, without momentum; in an arena of zeros, before the first link.

        Concurrency: no worker may move.
        """
        if self.number("generation"):
            return
        self.of("anchor", 1)[:] = self.arena.params[: self.n]
        self.store("added", _HIGH + len(self._places))
        self.draw_id()
        self.store("generation", 1)

    def draw_id(self) -> None:
        """Be a machine that the cluster does not know."""
        self.store("id", 1 + secrets.randbits(62))

    def read(self) -> int:
        """Copy the parameters to `link.read`; returns tokens of this machine that are in it.

        Without new tokens theta_s stands for the parameters: a movement that no token weighs, of
        a checkpoint or of a step that ends now, stays in them for a later round.
        """
        tokens = self.trained()  # first: a step that ends meanwhile counts in the next round
        if self.fresh(tokens):
            self._copy_parameters()
        else:
            self.of("read")[:] = self.of("anchor")
        return tokens

    def _copy_parameters(self) -> None:
        updates.snapshot(self.of("read"), self.arena.params[: self.n])

    def movement(self) -> Float32:
        """theta_s less the parameters that were read, (n,) float32."""
        movement: Float32 = self.of("anchor") - self.of("read")
        return movement

    def send(self, tokens: int) -> None:
        """Note that the group gets what was read; `commit`, `load` or `keep` follow."""
        self.store("sent_tokens", tokens)
        self.store("sent", self.number("generation"))

    def keep(self) -> None:
        """Note that no member has what was sent; it goes into a later round."""
        self.store("sent", 0)

    def commit(self, state: State, residual: Float32 | None) -> None:
        """Take the state after a round whose mean has this machine's movement in it."""
        tokens, lost = self.number("sent_tokens"), self.number("lost")
        self.round_tokens = self.fresh(tokens)
        with self.writing():
            rounds = self.number("rounds") + 1
            self._turn(state, residual, rounds, tokens - lost, lost, self.number("lost_before"))
            self._add()

    def load(self, state: State, machine: int) -> None:
        """Take over the members' state, and add this machine's own movement to it.

        If that state has more tokens of this machine than its own one, it has what was sent last,
        and only the movement since then is added. Tokens that it lacks, of rounds that this machine
        committed or of the sent buffer, are declared lost; first those of this call.

        Args:
            state: of the members.
            machine: id of this machine.
        """
        more = state.included.get(machine, 0) - self.included().get(machine, 0)
        has_it = more > 0 and self.has_sent()
        if has_it:
            settled = self.number("sent_tokens")
        else:
            settled = self.number("committed") + self.number("lost")
            self.keep()
            self.of("read")[:] = self.of("anchor")
        more += self.number("committed")
        committed = min(max(0, more), settled)  # the rest is of earlier calls
        before = max(0, self.number("lost_before") + committed - more)
        self.count("loads")
        if (ahead_s := state.seconds - self.seconds()) > 0:
            self.arena.counters.add("ms_elsewhere", round(1e3 * ahead_s))
        with self.writing():
            rounds = self.number("rounds") + has_it
            self._turn(state, None, rounds, committed, settled - committed, before)
            self._add()

    def fresh(self, tokens: int) -> int:
        """Of the first `tokens` tokens of this machine, those that are not committed or lost."""
        return tokens - self.number("committed") - self.number("lost")

    def _turn(self, state: State, residual: Float32 | None, *own: int) -> None:
        """Write the other side, with the last numbers of `RECORD`, then use it."""
        old, other = self.side, 1 - self.side
        np.copyto(self.of("anchor", other), state.anchor)
        np.copyto(self.of("velocity", other), state.velocity)
        if self.has_residual:
            value = self.of("residual", old) if residual is None else residual
            np.copyto(self.of("residual", other), value)
        self._set_included(other, state.included)
        record = (state.round, state.tokens, *own)
        for name, number in zip(RECORD, record, strict=True):
            self._words.store(*self.place(name, other), number)
        self.count("generation")
        self._count_elsewhere()

    def _set_included(self, side: int, included: Mapping[int, int]) -> None:
        latest = list(included.items())[:MOST_MACHINES]
        table = self.arena.segment(f"link.included.{side}").reshape(-1, 2)
        table[:] = 0
        table[: len(latest)] = np.array(latest, np.int64).reshape(-1, 2)

    def _count_elsewhere(self) -> None:
        """Move the schedule to the tokens of all machines."""
        own = self.number("committed_before") + self.number("committed")
        self.arena.counters.store("tokens_elsewhere", max(0, self.number("tokens") - own))

    def finish(self) -> None:
        """Add the rest of the difference to the parameters, lock-free beside the workers.

        A link calls it first: the last one may have died before its end. The update counts in the
        version, so gradients that were read before it are one update older.
        """
        if self._added() < len(self._places):
            with self.writing():
                self._add()

    def _added(self) -> int:
        """Parameters to which the difference is added."""
        return max(0, self.number("added") - self.number("generation") * _HIGH)

    def _add(self) -> None:
        """Add the difference to the other parameters."""
        arena, done = self.arena, self._added()
        if done == len(self._places):
            return  # the supervisor has done it, for a checkpoint
        base = self.number("generation") * _HIGH
        locks, mode = arena.locks(self._slot), updates.WRITE_MODES[arena.write]
        marks = Marks(arena, arena.workers.host_slot if self._slot is None else self._slot)
        anchor, read = self.of("anchor"), self.of("read")
        marks.begin_update()
        for k, slot in enumerate(self._places[done:], start=done):
            span = slice(slot.offset, slot.offset + slot.size)
            before = read[span]
            if self.number("adding") == base + k + 1:
                self.count("torn")
                before = arena.params[span].copy()
            self.store("adding", base + k + 1)
            marks.begin(slot.name)
            step = (anchor[span] - before).reshape(slot.shape)
            updates.add(arena.params, slot, step, locks=locks, mode=mode)
            marks.end(slot.name)
            self.store("added", base + k + 1)
        arena.counters.add("version")
        marks.end_update()

    # -- checkpoints -----------------------------------------------------------------------------

    def saved(self) -> tuple[dict[str, Float32], dict[str, int]]:
        """Arrays by segment and parameter, and numbers, for a checkpoint; no link may write.

        Every machine of a cluster saves the same theta_s of a round, so any of them can resume it.
        The parameters are saved after this call.
        """
        self.finish()
        arrays = {
            f"link.{kind}/{place.name}": self._part(kind, place)
            for kind in self._kinds(sent=self.has_sent())
            for place in self._places
        }
        return arrays, {
            **{name: self.number(name) for name in ("round", "tokens")},
            "committed": self.number("committed_before") + self.number("committed"),
            "ms_elsewhere": self.arena.counters.load("ms_elsewhere"),
            "sent": int(self.has_sent()),
            "id": self.number("id"),
            "host": _host(),
            **{f"{_OF}{id}": tokens for id, tokens in self.included().items()},
        }

    def _kinds(self, *, sent: bool) -> tuple[str, ...]:
        """Kinds of numbers in a checkpoint, with what may be committed if something was sent."""
        residual, read = ("residual",) * self.has_residual, ("read",) * sent
        return ("anchor", "velocity", *residual, *read)

    def has_sent(self) -> bool:
        """Whether other members may have committed what this one gave to the group last."""
        return self.number("sent") == self.number("generation")

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
        What was sent, or all of it if training continued after the checkpoint, may be committed by
        other members: it is given up if it is.

        Args:
            arrays: of `saved`.
            numbers: likewise.
            seconds: of training of this run until then.
            is_last: whether nothing was trained after it.

        Raises:
            CheckpointError: a part of it is missing, or has another shape than in this run.
        """
        self.begin()
        for kind in self._kinds(sent=bool(numbers["sent"])):
            for place in self._places:
                value = arrays.get(name := f"link.{kind}/{place.name}")
                part = self._part(kind, place)
                if value is None and kind == "residual":
                    continue  # the rounds before were in float32
                if value is None or value.shape != part.shape:
                    raise CheckpointError(
                        f"the checkpoint's {name} has shape "
                        f"{None if value is None else value.shape}, this run wants {part.shape}; "
                        "resume another checkpoint, or leave --cluster out"
                    )
                part[...] = value
        for name in ("round", "tokens"):
            self.store(name, numbers[name])
        included = {name: n for name, n in numbers.items() if name.startswith(_OF)}
        self._set_included(
            self.side, {int(name.removeprefix(_OF)): n for name, n in included.items()}
        )
        if numbers.get("host") == _host():  # a copy of the run elsewhere is another machine
            self.store("id", numbers["id"])
        self.store("committed_before", numbers["committed"])
        self.store("ms_before", round(1e3 * seconds))
        self.arena.counters.store("ms_elsewhere", numbers["ms_elsewhere"])
        self._count_elsewhere()
        if not is_last:
            self._copy_parameters()
        if numbers["sent"] or not is_last:
            self.send(0)

    def _part(self, kind: str, place: Slot) -> Float32:
        return self.of(kind)[place.offset : place.offset + place.size].reshape(place.shape)

    # -- the report ------------------------------------------------------------------------------

    def report(self) -> dict[str, object]:
        """The machine's part in the cluster, for run.json and reports; plain JSON values.

        Tokens that this machine trained are committed, declared lost, or wait for a round. Those in
        `tokens_lost_before` were committed in earlier calls, and the others did not have them.
        `joined_s_ago` is the age of its last join, None before the first.
        """
        names = ("rounds", "refused", "loads", "unequal", "torn", "members", "rank", "bytes")
        trained, joined_ns = self.trained(), self.number("joined_ns")
        return {
            **{name: self.number(name) for name in names},
            "round": self.number("round"),
            "joined_s_ago": (monotonic_ns() - joined_ns) / 1e9 if joined_ns else None,
            "cluster_tokens": self.number("tokens"),
            "tokens_trained": trained,
            "tokens_committed": self.number("committed"),
            "tokens_lost": self.number("lost"),
            "tokens_lost_before": self.number("lost_before"),
            "tokens_waiting": self.fresh(trained),
            "theta_s": self.digest.hex(),
        }


def _host() -> int:
    """A number of the host that this process runs on."""
    return int.from_bytes(hashlib.blake2b(platform.node().encode(), digest_size=6).digest())
