"""Workers apply in turn (Langford, Smola, Zinkevich 2009, Slow Learners are Fast, arXiv:0911.0491).

Turn t belongs to worker t mod P. Inside its turn a worker adds its step, copies the parameters for
its next gradient, and passes the turn on; the gradient is computed while the others have theirs. So
every gradient is applied exactly P - 1 updates after it was read, no two workers write at once, and
the run is a function of its configuration: with a budget of steps or tokens, reruns are equal bit
for bit, and one worker is the serial run.

The copies lie in the arena: a worker that replaces a dead one computes the very same gradient.
Turns are opened one by one, each by the worker that ends the turn P before it; when none is opened
(the budget is used up, or a checkpoint wants the arena to hold still) those that are open run out,
and the copies stay what they were. A checkpoint keeps them, so a pause or a resume changes nothing.

    segment                        dtype    meaning
    turns.read.1 .. turns.read.P   float32  the parameters each worker's next gradient is taken at
    turns.words                    uint8    line 0: [0] the turn, [1] every turn below is open,
                                            [2] the first turn of this call, [3] tokens of this call
                                            line 1 + rank: [0] version of its copy
                                            line 1 + P + rank: journal (`words.py`)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Grads
from mlxhog.data.ledger import Ledger, TicketState
from mlxhog.optim import clip, updates
from mlxhog.strategies import Context, Idle, Lease, Outcome
from mlxhog.strategies.words import LINE, Journal, Noted, Words

_TURN, _OPEN, _FIRST, _TOKENS = range(4)
LONGEST_NAP_S = 2e-4


def turn_segments(workers: int) -> dict[str, tuple[str, int]]:
    """Arena segments of the table above."""
    return {
        **{name: ("float32", PARAMETER_COPY) for name in copies(workers)},
        "turns.words": ("uint8", LINE * (1 + 2 * workers)),
    }


def copies(workers: int) -> tuple[str, ...]:
    """The segments that a checkpoint keeps."""
    return tuple(f"turns.read.{rank + 1}" for rank in range(workers))


def begin(arena: Arena, workers: int, kept: Mapping[str, Any] | None) -> None:
    """Let every worker's first gradient be taken at the arena's parameters, or where it left off.

    Args:
        arena: its parameters and counters are in place, its workers not started.
        workers: of the run.
        kept: what `position` said when the checkpoint was taken by as many workers; its copies are
            filled in by the caller.
    """
    words, version = Words(arena.segment("turns.words")), arena.counters.load("version")
    versions = [version] * workers if kept is None else kept["versions"]
    first = 0 if kept is None else kept["turn"] % workers
    for word in (_TURN, _OPEN, _FIRST):
        words.store(0, word, first)
    for rank, read in enumerate(versions):
        words.store(1 + rank, 0, read)
        if kept is None:
            updates.snapshot(arena.segment(copies(workers)[rank]), arena.params)


def position(arena: Arena, workers: int) -> dict[str, Any]:
    """Whose turn it is, and the versions of all copies, for a checkpoint; nobody may move."""
    words = Words(arena.segment("turns.words"))
    return {
        "turn": words.load(0, _TURN),
        "versions": [words.load(1 + rank, 0) for rank in range(workers)],
    }


def steps_done(arena: Arena) -> int:
    """Turns of this call that are over; each is a step."""
    words = Words(arena.segment("turns.words"))
    return words.load(0, _TURN) - words.load(0, _FIRST)


def between_turns(arena: Arena) -> bool:
    """Whether no turn is open, so that no worker may move while the arena is to hold still."""
    words = Words(arena.segment("turns.words"))
    return words.load(0, _TURN) == words.load(0, _OPEN)


def settle(arena: Arena, workers: int, ledger: Ledger) -> None:
    """End the turn of a worker that died with its step behind it. Nobody may move."""
    words = Words(arena.segment("turns.words"))
    turn = words.load(0, _TURN)
    rank = turn % workers
    number = arena.counters.load("first_ticket") + turn - words.load(0, _FIRST)
    noted = Journal(words, 1 + workers + rank).read()
    if noted.ticket == number and ledger.state(*ledger.locate(number)) == TicketState.DONE:
        _take_in(arena, words, rank, noted)
        words.store(0, _TURN, turn + 1)


def _take_in(arena: Arena, words: Words, rank: int, noted: Noted) -> None:
    """Make what a turn was noted to leave what holds; doing it twice changes nothing."""
    arena.workers.entry(rank + 1).opt_step = noted.opt_step
    arena.counters.store("version", noted.version)
    words.store(0, _TOKENS, noted.tokens)
    updates.snapshot(arena.segment(f"turns.read.{rank + 1}"), arena.params)
    words.store(1 + rank, 0, noted.version)


class RoundRobin:
    """One worker's turns."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        self.context = context
        self._words = Words(context.arena.segment("turns.words"))
        self._journal = Journal(self._words, 1 + context.workers + context.rank)
        self._copy = context.arena.segment(f"turns.read.{context.slot}")
        self._target = context.target(context.slot)
        self._first = self._words.load(0, _FIRST)
        self._turn = 0
        self._leased = False

    def counts_step(self) -> bool:
        """See `Strategy.counts_step`."""
        return True

    def claim(self) -> Lease | Idle:
        """Lease the ticket of this worker's next turn, if it is open; see `Strategy.claim`."""
        context, words = self.context, self._words
        turn = words.load(0, _TURN)
        own = turn + (context.rank - turn) % context.workers
        opened = words.load(0, _OPEN)
        if own >= opened:
            if self._is_over(opened):
                return Idle.DONE
            if not own == turn == opened or context.paused():
                return Idle.WAIT
            self._open(turn + context.workers)  # nothing is in flight: fill all hands again
        number = context.arena.counters.load("first_ticket") + own - self._first
        epoch, ticket = divmod(number, context.ledger.n)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and context.ledger.state(epoch, ticket) != TicketState.DONE:
            return Idle.WAIT  # a whole ring of tickets ahead of the oldest
        self._turn = own
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def _is_over(self, opened: int) -> bool:
        context, limit = self.context, self.context.step_limit
        used_up = limit is not None and opened - self._first >= limit
        return used_up or context.stopping() or context.used_up()

    def _open(self, end: int) -> None:
        """Open all turns below `end` that the budget has. Only by the one whose turn it is."""
        limit = self.context.step_limit
        if limit is not None:
            end = min(end, self._first + limit)
        self._words.store(0, _OPEN, end)

    def read(self) -> None:
        """Load the copy that was made in this worker's last turn."""
        context = self.context
        context.entry.version_read = self._words.load(1 + context.rank, 0)
        updates.snapshot(context.backend.inbox, self._copy)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> Outcome:
        """Wait for the turn, add the step, copy the parameters, pass the turn on."""
        context, words = self.context, self._words
        entry, ledger = context.entry, context.ledger
        norm = clip.global_norm(grads)
        self._wait_for_turn()
        entry.phase = Phase.APPLY
        if self._leased:  # else the one before died in this turn, with its step behind it
            lr = self._lr()
            noted = self._noted(lease, bool(np.isfinite(norm)), samples)
            self._journal.write(noted)
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if noted.applied:
                self._apply(grads, norm, lr, noted)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        done = self._journal.read()
        _take_in(context.arena, words, context.rank, done)
        if words.load(0, _OPEN) == self._turn + context.workers:
            if not (self._is_over(self._turn + context.workers) or context.paused()):
                self._open(self._turn + context.workers + 1)
        entry.ticket = -1
        words.store(0, _TURN, self._turn + 1)
        staleness = max(0, done.version - done.applied - entry.version_read)
        return Outcome(applied=done.applied, staleness=staleness, version=done.version)

    def _wait_for_turn(self) -> None:
        """The phase stays what it was: with a gradient in hand nobody holds still."""
        entry, began, nap_s = self.context.entry, monotonic_ns(), 0.0
        while self._words.load(0, _TURN) != self._turn:
            entry.beat()
            time.sleep(nap_s)
            nap_s = min(LONGEST_NAP_S, nap_s + 1e-5)
        entry.wait_ns += monotonic_ns() - began

    def _noted(self, lease: Lease, finite: bool, samples: int) -> Noted:
        """What will hold once this turn is over."""
        context = self.context
        return Noted(
            opt_step=context.entry.opt_step + finite,
            version=context.arena.counters.load("version") + finite,
            tokens=self._words.load(0, _TOKENS) + samples * context.config.seq_len,
            applied=finite,
            ticket=lease.epoch * context.ledger.n + lease.ticket,
        )

    def _lr(self) -> float:
        """Step size of this turn, from what the turns before it have left."""
        context = self.context
        progress = context.budget.progress(
            steps=self._turn - self._first,
            tokens=self._words.load(0, _TOKENS),
            seconds=context.seconds(),
        )
        return context.schedule(progress, context.arena.counters.load("version"))

    def _apply(self, grads: Grads, norm: float, lr: float, noted: Noted) -> None:
        context = self.context
        context.optimizer.step(
            self._target,
            grads,
            lr=lr,
            step=noted.opt_step,
            seed=context.entry.version_read * 65_537 + context.slot,
            grad_scale=context.grad_scale(norm),
            shared_step=noted.version,
        )
