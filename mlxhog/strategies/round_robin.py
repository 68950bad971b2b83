"""Workers apply in turn (Langford, Smola, Zinkevich 2009, Slow Learners are Fast, arXiv:0911.0491).

Turn t belongs to worker t mod P. Inside its turn a worker adds its step, copies the parameters for
its next gradient, and passes the turn on; the gradient is computed while the others have theirs. So
every gradient is applied exactly P - 1 updates after it was read, no two workers write at once, and
the run is a function of its configuration: with a budget of steps or tokens, reruns are equal bit
for bit, and one worker is the serial run.

With `predict=last` the copy is extrapolated by P - 1 steps like the last ones (`look_ahead.py`).

The copies are in the arena: a worker that replaces a dead one computes the very same gradient.
Turns are opened one by one, each by the worker that ends the turn P before it. When none is opened
(the budget is used up, or the arena is to hold still for a checkpoint) the open turns run out, and
the copies stay unchanged. A checkpoint keeps them, so a pause or a resume changes nothing.

    segment                        dtype    meaning
    turns.read.1 .. turns.read.P   float32  the parameters each worker's next gradient is taken at
    turns.words                    uint8    line 0: [0] the turn, [1] every turn below is open,
                                            [2] the first turn of this call, [3] tokens of this call
                                            line 1 + rank: [0] version of its copy
                                            line 1 + P + rank: journal (`control_words.py`)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.ledger import Ledger, TicketState
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Grads
from mlxhog.optim import updates
from mlxhog.strategies import look_ahead
from mlxhog.strategies.context import Context, Idle, Lease, WriteResult
from mlxhog.strategies.control_words import LINE, StepJournal, StepRecord, Words
from mlxhog.strategies.delays import Delays
from mlxhog.strategies.strategy import Strategy

_TURN, _OPEN, _FIRST, _TOKENS = range(4)
LONGEST_NAP_S = 2e-4


class RoundRobin(Strategy):
    """Workers that apply in turn."""

    numbered: ClassVar[bool] = True

    def segments(self, n_params: int) -> dict[str, tuple[str, int]]:
        """The segments of the table above."""
        return {
            **{name: ("float32", PARAMETER_COPY) for name in self.kept_segments()},
            "turns.words": ("uint8", LINE * (1 + 2 * self.workers)),
        }

    def worker(self, context: Context) -> RoundRobinWorker:
        """Prepare one worker."""
        return RoundRobinWorker(context)

    def kept_segments(self) -> tuple[str, ...]:
        """The parameters at which each worker's next gradient is taken."""
        copies = (f"turns.read.{rank + 1}" for rank in range(self.workers))
        return (*copies, *look_ahead.segments(self.config, self.workers))

    def begin(self, arena: Arena, position: Mapping[str, Any] | None = None) -> None:
        """Let each worker's first gradient be taken at the parameters, or at its restored copy."""
        words, version = Words(arena.segment("turns.words")), arena.counters.load("version")
        versions = [version] * self.workers if position is None else position["versions"]
        first = 0 if position is None else position["turn"] % self.workers
        for word in (_TURN, _OPEN, _FIRST):
            words.store(0, word, first)
        for rank, own in enumerate(versions):
            words.store(1 + rank, 0, own)
            if position is None:
                updates.snapshot(arena.segment(f"turns.read.{rank + 1}"), arena.params)

    def position(self, arena: Arena) -> dict[str, Any]:
        """The number of the turn, and the versions of all copies."""
        words = Words(arena.segment("turns.words"))
        return {
            "turn": words.load(0, _TURN),
            "versions": [words.load(1 + rank, 0) for rank in range(self.workers)],
        }

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        """Turns of this call that are over; each is a step."""
        words = Words(arena.segment("turns.words"))
        return words.load(0, _TURN) - words.load(0, _FIRST)

    def between_steps(self, arena: Arena) -> bool:
        """Whether no turn is open."""
        words = Words(arena.segment("turns.words"))
        return words.load(0, _TURN) == words.load(0, _OPEN)

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        """End the turn of a worker that died after its step."""
        words = Words(arena.segment("turns.words"))
        turn = words.load(0, _TURN)
        rank = turn % self.workers
        number = arena.counters.load("first_ticket") + turn - words.load(0, _FIRST)
        record = StepJournal(words, 1 + self.workers + rank).read()
        if record.ticket == number and ledger.state(*ledger.locate(number)) == TicketState.DONE:
            _take_in(self, arena, words, rank, record)
            words.store(0, _TURN, turn + 1)
        super().settle(arena, ledger)


def _take_in(strategy: Strategy, arena: Arena, words: Words, rank: int, record: StepRecord) -> None:
    """Store the counts of a turn's record, and copy; doing it twice changes nothing."""
    arena.workers.entry(rank + 1).opt_step = record.opt_step
    arena.counters.store("version", record.version)
    words.store(0, _TOKENS, record.tokens)
    reader = look_ahead.reader(arena, strategy.config, strategy.workers)
    reader.read(arena.segment(f"turns.read.{rank + 1}"))
    words.store(1 + rank, 0, record.version)


class RoundRobinWorker:
    """One worker's turns."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        self.context = context
        self._words = Words(context.arena.segment("turns.words"))
        self._journal = StepJournal(self._words, 1 + context.workers + context.rank)
        self._copy = context.arena.segment(f"turns.read.{context.slot}")
        self._target = context.target(context.slot)
        self._delays = Delays(context)
        self._first = self._words.load(0, _FIRST)
        self._turn = 0
        self._leased = False

    def counts_step(self) -> bool:
        """Every turn is a step."""
        return True

    def claim(self) -> Lease | Idle:
        """Lease the ticket of this worker's next turn, if it is open."""
        context, words = self.context, self._words
        turn = words.load(0, _TURN)
        own = turn + (context.rank - turn) % context.workers
        open_turn = words.load(0, _OPEN)
        if own >= open_turn:
            if self._is_over(open_turn):
                return Idle.DONE
            if not own == turn == open_turn or context.paused():
                return Idle.WAIT
            self._open(turn + context.workers)  # no turn is open: open one for each worker
        number = context.arena.counters.load("first_ticket") + own - self._first
        epoch, ticket = divmod(number, context.ledger.n)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased and context.ledger.state(epoch, ticket) != TicketState.DONE:
            return Idle.WAIT  # a whole ring of tickets ahead of the oldest
        self._turn = own
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def _is_over(self, open_turn: int) -> bool:
        context, limit = self.context, self.context.step_limit
        used_up = limit is not None and open_turn - self._first >= limit
        return used_up or context.stopping() or context.used_up()

    def _open(self, end: int) -> None:
        """Open all turns below `end` within the budget. Only for the worker whose turn it is."""
        limit = self.context.step_limit
        if limit is not None:
            end = min(end, self._first + limit)
        self._words.store(0, _OPEN, end)

    def read(self) -> None:
        """Load the copy that was made in this worker's last turn."""
        context = self.context
        context.entry.version_read = self._words.load(1 + context.rank, 0)
        updates.snapshot(context.backend.inbox, self._copy, threads=context.threads)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> WriteResult:
        """Wait for the turn, add the step, copy the parameters, pass the turn on."""
        context, words = self.context, self._words
        entry, ledger = context.entry, context.ledger
        norm = context.norm(grads)
        self._wait_for_turn()
        entry.phase = Phase.APPLY
        context.marks.begin_update()
        if self._leased:  # else its predecessor died in this turn, after the step
            lr = self._lr()
            record = self._record(lease, bool(np.isfinite(norm)), samples)
            self._journal.write(record)
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if record.applied:
                self._apply(grads, norm, lr, record)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        record = self._journal.read()
        _take_in(context.strategy, context.arena, words, context.rank, record)
        context.marks.end_update()
        if words.load(0, _OPEN) == self._turn + context.workers:
            if not (self._is_over(self._turn + context.workers) or context.paused()):
                self._open(self._turn + context.workers + 1)
        entry.ticket = -1
        words.store(0, _TURN, self._turn + 1)
        staleness = max(0, record.version - record.applied - entry.version_read)
        return WriteResult(applied=record.applied, staleness=staleness, version=record.version)

    def _wait_for_turn(self) -> None:
        """Wait in the same phase: a worker that has a gradient does not hold still."""
        entry, began_ns, nap_s = self.context.entry, monotonic_ns(), 0.0
        while self._words.load(0, _TURN) != self._turn:
            entry.beat()
            time.sleep(nap_s)
            nap_s = min(LONGEST_NAP_S, nap_s + 1e-5)
        entry.wait_ns += monotonic_ns() - began_ns

    def _record(self, lease: Lease, finite: bool, samples: int) -> StepRecord:
        """Counts after this turn."""
        context = self.context
        return StepRecord(
            opt_step=context.entry.opt_step + finite,
            version=context.arena.counters.load("version") + finite,
            tokens=self._words.load(0, _TOKENS) + samples * context.config.seq_len,
            applied=finite,
            ticket=lease.epoch * context.ledger.n + lease.ticket,
        )

    def _lr(self) -> float:
        """Step size of this turn, from the counts of the turns before it."""
        context = self.context
        progress = context.budget.progress(
            steps=self._turn - self._first,
            tokens=self._words.load(0, _TOKENS),
            seconds=context.seconds(),
        )
        return context.schedule(progress, context.arena.counters.load("version"))

    def _apply(self, grads: Grads, norm: float, lr: float, record: StepRecord) -> None:
        context = self.context
        staleness = context.arena.counters.load("version") - context.entry.version_read
        context.optimizer.step(
            self._target,
            grads,
            lr=lr,
            step=record.opt_step,
            seed=context.entry.version_read * 65_537 + context.slot,
            grad_scale=context.grad_scale(norm),
            shared_step=context.shared_steps() + 1,
            feedback=self._delays.feedback(staleness, since=staleness + 1),
        )
