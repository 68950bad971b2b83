"""The ticket ledger: any number of workers sees every batch once per epoch, whoever dies.

A ticket is the number of a batch within its epoch. Inside, tickets are counted from the beginning
of training, g = epoch * n + ticket, which makes epochs roll over by themselves: one counter hands
tickets out, and while some of epoch e are still in flight the others go on with epoch e + 1.

    FREE -> LEASED(owner) -> APPLYING(owner) -> DONE
              | owner dies      | owner dies
              v                 v
           RETURNED           DONE and torn + 1     (torn: its update may be half applied)

A death in LEASED has changed nothing, so the ticket is given out again. A death in APPLYING may
have changed some parameters, which a lock-free arena cannot roll back: the ticket counts as done
and is reported, or with `on_torn="retry"` is given out again (its batch may then count twice).

Shared memory (`metal/native/arena/ledger.cpp` is the other side):

    segment  byte  type     name       meaning
    ledger      0  u64      next       every ticket below has been handed out
              128  u64      watermark  every ticket below is DONE
              256  u64      returns    returns announced since the beginning, only grows
              384  u64      noticed    `returns` as a fruitless search saw it, only grows
              512  u64      torn       tickets that died half applied
    tickets         u64[R]  slots      ticket g lies in slot g mod R; R is a power of two

    slot bits 0-2 state (0 FREE, 1 LEASED, 2 APPLYING, 3 RETURNED, 4 DONE)
              3-39 lap, g / R: a slot of another lap reads as FREE, so none is ever cleared
              40-63 owner, an incarnation number that is never used twice

The ring: tickets are handed out only below watermark + R, so a slot is DONE before its next lap
begins. R covers two epochs, at least 1024 and at most 2^20 tickets, whatever the size of the text.

A process may be stopped for any time between reading a slot and swapping it. Its swap succeeds only
on the very word that it read, and a slot holds words of each lap once: laps are numbered up to
2^37, which is four years at a million tickets a second. (A lap number that wraps is not enough:
with 32 laps a worker stopped for 32 laps could find "DONE by owner 3" again where it had read it,
lease the ticket that lies there now under the number of its own, and train that one twice and this
one never.) Memory that no correct process could have written is an `ArenaError`.

Every arrow is one compare-and-swap, and a process may be killed between any two of them. What a
death leaves is repaired by others: `reap` settles what its owner held; `sweep_orphans` finds
tickets that were handed out and never leased; every finisher moves the watermark on.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypedDict

from mlxhog import _native
from mlxhog.arena.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.errors import ArenaError, CheckpointError, ConfigError

ORPHAN_GRACE_NS = 20_000_000
ON_TORN = ("count", "retry")
NO_END = (1 << 64) - 1


class TicketState(IntEnum):
    """Where a ticket stands; equal to `TicketState` in `metal/native/arena/ledger.h`."""

    FREE = 0
    LEASED = 1
    APPLYING = 2
    RETURNED = 3
    DONE = 4


class ReapReport(NamedTuple):
    """What a dead worker left: tickets given out again, and tickets half applied."""

    returned: int
    torn: int


class Position(TypedDict):
    """How far training has come, for a checkpoint; plain JSON.

    `watermark` and `done` count from the start of `epoch`: every ticket below `watermark` is done,
    and those of `done` above it; a number of `n` or more belongs to the epochs after.
    """

    epoch: int
    watermark: int
    done: list[int]
    torn: int
    n: int


class Ledger:
    """Tickets of one arena.

    Owners are incarnations from the worker table. Methods return at once and never block.

    Concurrency: every method but `restore` and `start_epoch` may be called in any process at any
    time; `reap` and `sweep_orphans` belong to the supervisor.
    """

    def __init__(self, arena: Arena, *, on_torn: str = "count") -> None:
        """Use the ledger of an arena that may be written.

        Raises:
            ArenaError: the arena is attached read-only.
            ConfigError: `on_torn` is neither `count` nor `retry`.
        """
        if arena.readonly:
            raise ArenaError("this arena is attached read-only; readers take no tickets")
        if on_torn not in ON_TORN:
            raise ConfigError(f"on_torn is {on_torn!r}; choose from {', '.join(ON_TORN)}")
        self.n = arena.layout.n_tickets
        self._retry_torn = on_torn == "retry"
        self._native = _native.TicketLedger(arena.segment("ledger"), arena.segment("tickets"))
        self._orphans: dict[int, int] = {}  # ticket -> when the sweep first met it

    def claim(self, owner: int, end: int = NO_END) -> tuple[int, int] | None:
        """Lease the next ticket, one that came back first: (epoch, ticket).

        None means: nothing now, ask again. Then all tickets below `end`, counted from the beginning
        of training, are handed out (and one may come back), or the oldest ticket in flight is a
        whole ring behind.
        """
        position = self._native.claim(owner, end)
        return None if position is None else divmod(position, self.n)

    def claim_exact(self, epoch: int, ticket: int, owner: int) -> bool:
        """Lease one particular ticket, for strategies that deal them out (b to worker b mod P).

        Returns:
            False if it is someone else's, done (see `state`), or a whole ring ahead of the oldest
            ticket in flight.
        """
        return self._native.claim_exact(epoch * self.n + ticket, owner)

    def begin_apply(self, epoch: int, ticket: int, owner: int) -> bool:
        """Mark that the update is about to touch parameters; False if `owner` does not lease it."""
        return self._native.begin_apply(epoch * self.n + ticket, owner)

    def finish(self, epoch: int, ticket: int, owner: int) -> bool:
        """Mark that the update is applied; False if `owner` was not applying it."""
        return self._native.finish(epoch * self.n + ticket, owner)

    def give_back(self, epoch: int, ticket: int, owner: int) -> bool:
        """Return a leased ticket unused; False if `owner` does not lease it."""
        return self._native.give_back(epoch * self.n + ticket, owner)

    def reap(self, owner: int) -> ReapReport:
        """Settle what a dead owner held.

        Only after its process has been waited for: never reap a process that may still run.
        """
        return ReapReport(*self._native.reap(owner, self._retry_torn))

    def sweep_orphans(self) -> int:
        """Return tickets whose claimer died before leasing them; how many were returned.

        Call it now and then: a ticket counts as an orphan once two calls 20 ms or more apart have
        met it unleased. A claimer that was only slow loses nothing but this ticket.
        """
        now = monotonic_ns()
        first_met = {g: self._orphans.get(g, now) for g in self._native.orphans()}
        ripe = [g for g, met in first_met.items() if now - met >= ORPHAN_GRACE_NS]
        returned = sum(self._native.return_orphan(g) for g in ripe)
        self._orphans = {g: met for g, met in first_met.items() if g not in ripe}
        self._native.announce_returns()
        return returned

    def locate(self, g: int) -> tuple[int, int]:
        """The ticket with number `g` from the beginning of training: (epoch, ticket)."""
        return divmod(g, self.n)

    @property
    def watermark(self) -> int:
        """Every ticket below is done; counted from the beginning of training."""
        return self._native.watermark()

    def count_done(self) -> int:
        """Tickets that are done since the beginning of training, torn ones included.

        Exact whoever died, once the dead are reaped: a ticket is done by one compare-and-swap.
        """
        watermark, done, _ = self._native.position()
        return watermark + len(done)

    def end_after(self, count: int) -> int:
        """The ticket behind the next `count` that are not done; nobody may take any meanwhile."""
        watermark, done, _ = self._native.position()
        end = watermark + count
        for ticket in done:  # ascending, all above the watermark
            if ticket >= end:
                break
            end += 1
        return end

    def state(self, epoch: int, ticket: int) -> TicketState:
        """Where a ticket stood a moment ago."""
        return TicketState(self._native.state(epoch * self.n + ticket))

    @property
    def epoch(self) -> int:
        """The oldest epoch that is not complete."""
        return self.watermark // self.n

    def position(self) -> Position:
        """How far training has come.

        Exact while no worker moves tickets; otherwise true of one moment for every single ticket:
        one that it calls done was done when the call returned.
        """
        watermark, done, torn = self._native.position()
        epoch, ticket = divmod(watermark, self.n)
        start = epoch * self.n
        return Position(
            epoch=epoch, watermark=ticket, done=[g - start for g in done], torn=torn, n=self.n
        )

    def restore(self, position: Position) -> None:
        """Continue from a checkpoint: everything that is not done there is given out again.

        Nobody else may use the ledger meanwhile.

        Raises:
            CheckpointError: the position was counted in batches of another size, or makes no sense.
        """
        if position["n"] != self.n:
            raise CheckpointError(
                f"the checkpoint counts {position['n']} batches per epoch, this run {self.n}; "
                "resume with the same data, batch size and sequence length"
            )
        start = position["epoch"] * self.n
        try:
            self._native.restore(
                start + position["watermark"],
                sorted(start + ticket for ticket in position["done"]),
                position["torn"],
            )
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint's data position {position} makes no sense: {error}"
            ) from error
        self._orphans.clear()

    def start_epoch(self, epoch: int) -> None:
        """Begin at the first ticket of `epoch`, forgetting all others; nobody else may use it."""
        self.restore(Position(epoch=epoch, watermark=0, done=[], torn=0, n=self.n))
