"""The ticket ledger: workers train on every batch once per epoch, even if some of them die.

A ticket is the number of a batch within its epoch. Internally, tickets are counted from the
beginning of training, g = epoch * n + ticket. So one counter gives out the tickets of all epochs:
while some tickets of epoch e are still in flight, other workers continue with epoch e + 1.

    FREE -> LEASED(owner) -> APPLYING(owner) -> DONE
              | owner dies      | owner dies
              v                 v
           RETURNED           DONE and torn + 1     (torn: its update may be half applied)

A death in LEASED has changed nothing, so the ticket is given out again. A death in APPLYING may
have changed some parameters, and a lock-free arena cannot undo that: the ticket counts as done and
is reported.

Shared memory (`metal/native/arena/ledger.cpp` is the other side):

    segment  byte  type     name       meaning
    ledger      0  u64      next       every ticket below has been handed out
              128  u64      watermark  every ticket below is DONE
              256  u64      returns    returns announced since the beginning, only grows
              384  u64      noticed    `returns` at the last search without result, only grows
              512  u64      torn       tickets that died half applied
    tickets         u64[R]  slots      ticket g lies in slot g mod R; R is a power of two

    slot bits 0-2 state (0 FREE, 1 LEASED, 2 APPLYING, 3 RETURNED, 4 DONE)
              3-39 lap, g / R: a slot of another lap reads as FREE, so none is ever cleared
              40-63 owner, an incarnation number that is never used twice

The ring: tickets are handed out only below watermark + R, so a slot is DONE before its next lap
begins. R covers two epochs, at least 1024 and at most 2^20 tickets, whatever the size of the text.

A process may be stopped for any time between its read of a slot and its compare-and-swap. The swap
succeeds only on the word that was read, and a slot has each word once: laps are numbered up to
2^37, which is four years at a million tickets a second. A lap number that wraps would not do: the
stopped worker could lease the ticket that is now in the slot under the number of its old one.
Memory that no correct process could have written is an `ArenaError`.

Every arrow is one compare-and-swap, and a process may be killed between any two of them. Others
repair the state that a death leaves: `reap` settles the tickets of its owner; `sweep_orphans` finds
tickets that were handed out and never leased; every `finish` advances the watermark.
"""

from enum import IntEnum
from typing import NamedTuple, TypedDict

from mlxhog import _native
from mlxhog.arena.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.errors import CheckpointError

ORPHAN_GRACE_NS = 20_000_000
NO_END = (1 << 64) - 1


class TicketState(IntEnum):
    """State of a ticket; equal to `TicketState` in `metal/native/arena/ledger.h`."""

    FREE = 0
    LEASED = 1
    APPLYING = 2
    RETURNED = 3
    DONE = 4


class ReapReport(NamedTuple):
    """Tickets of a dead worker: those given out again, and those half applied."""

    returned: int
    torn: int


class Position(TypedDict):
    """How far training has come, for a checkpoint; plain JSON.

    `watermark` and `done` count from the start of `epoch`: every ticket below `watermark` is done,
    and above it the tickets in `done`; numbers from `n` on belong to later epochs.
    """

    epoch: int
    watermark: int
    done: list[int]
    torn: int
    n: int


class Ledger:
    """Tickets of one arena.

    Owners are incarnations from the worker table. Methods return at once and never block.

    Concurrency: every method but `restore` may be called in any process at any
    time; `reap` and `sweep_orphans` belong to the supervisor.
    """

    def __init__(self, arena: Arena) -> None:
        """Use the ledger of an arena that may be written."""
        self.n = arena.layout.n_tickets
        self._words = arena.segment("ledger")
        self._native = _native.TicketLedger(self._words, arena.segment("tickets"))
        self._orphans: dict[int, int] = {}  # ticket -> time at which a sweep first saw it

    def claim(self, owner: int, end: int = NO_END) -> tuple[int, int] | None:
        """Lease the next ticket as (epoch, ticket); returned tickets come first.

        None means: ask again. All tickets below `end`, counted from the beginning of training, are
        handed out, and one may still be returned; or the oldest is a whole ring behind.
        """
        position = self._native.claim(owner, end)
        return None if position is None else divmod(position, self.n)

    def claim_exact(self, epoch: int, ticket: int, owner: int) -> bool:
        """Lease one ticket, for strategies that assign them by number.

        False if another owner has it, it is done, or it is a whole ring ahead of the oldest one.
        """
        return self._native.claim_exact(epoch * self.n + ticket, owner)

    def begin_apply(self, epoch: int, ticket: int, owner: int) -> bool:
        """Mark that the update begins to write parameters; False if `owner` does not lease it."""
        return self._native.begin_apply(epoch * self.n + ticket, owner)

    def finish(self, epoch: int, ticket: int, owner: int) -> bool:
        """Mark that the update is applied; False if `owner` was not applying it."""
        return self._native.finish(epoch * self.n + ticket, owner)

    def give_back(self, epoch: int, ticket: int, owner: int) -> bool:
        """Return a leased ticket unused; False if `owner` does not lease it."""
        return self._native.give_back(epoch * self.n + ticket, owner)

    def reap(self, owner: int) -> ReapReport:
        """Settle the tickets of a dead owner, after `waitpid` of its process."""
        return ReapReport(*self._native.reap(owner))

    def sweep_orphans(self) -> int:
        """Return the tickets that were handed out to a worker that died before its lease.

        A ticket is an orphan if two calls at least 20 ms apart see it without a lease. A worker
        that was only slow loses just this ticket. The result is their number.
        """
        now = monotonic_ns()
        first_met = {g: self._orphans.get(g, now) for g in self._native.orphans()}
        ripe = [g for g, met in first_met.items() if now - met >= ORPHAN_GRACE_NS]
        returned = sum(self._native.return_orphan(g) for g in ripe)
        self._orphans = {g: met for g, met in first_met.items() if g not in ripe}
        self._native.announce_returns()
        return returned

    def locate(self, g: int) -> tuple[int, int]:
        """The ticket number `g`, counted from the beginning of training, as (epoch, ticket)."""
        return divmod(g, self.n)

    @property
    def watermark(self) -> int:
        """Every ticket below is done; counted from the beginning of training."""
        return self._native.watermark()

    def count_done(self) -> int:
        """Number of tickets done since the beginning of training, including torn ones.

        Exact after any deaths, once the dead workers are reaped.
        """
        watermark, done, _ = self._native.position()
        return watermark + len(done)

    def end_after(self, count: int) -> int:
        """The end of the next `count` tickets that are not done; workers must not take any now."""
        watermark, done, _ = self._native.position()
        end = watermark + count
        for ticket in done:  # ascending, all above the watermark
            if ticket >= end:
                break
            end += 1
        return end

    def state(self, epoch: int, ticket: int) -> TicketState:
        """State of a ticket; other processes may change it at any time."""
        return TicketState(self._native.state(epoch * self.n + ticket))

    def position(self) -> Position:
        """The progress of training, for a checkpoint; exact while no worker finishes a ticket."""
        watermark, done, torn = self._native.position()
        epoch, ticket = divmod(watermark, self.n)
        done = [g - epoch * self.n for g in done]
        return Position(epoch=epoch, watermark=ticket, done=done, torn=torn, n=self.n)

    def restore(self, position: Position) -> None:
        """Continue from a checkpoint: every ticket that is not done there is given out again.

        Raises:
            CheckpointError: the position has another number of batches per epoch.
        """
        if position["n"] != self.n:
            raise CheckpointError(
                f"the checkpoint counts {position['n']} batches per epoch, this run {self.n}; "
                "resume with the same data, batch size and sequence length"
            )
        start = position["epoch"] * self.n
        done = sorted(start + ticket for ticket in position["done"])
        self._native.restore(start + position["watermark"], done, position["torn"])
        self._orphans.clear()
