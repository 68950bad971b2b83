"""Independent runs, averaged (Zinkevich et al. 2010, Parallelized SGD: SimuParallelSGD).

Every worker trains a copy of the parameters of its own on its own shard: of each epoch's shuffle it
takes every P-th batch. The copies are averaged in rank order once at the end, or also whenever each
has taken `average_every` steps (local SGD, Stich 2019). With a budget of steps or tokens reruns are
equal bit for bit, and one worker is the serial run.

The theory is for convex problems. Copies of a network may leave the common basin of their first
values; their average is then worse than each of them, which is why a run evaluates them, too.

An averaging begins when rank 0 has seen every worker at the mark, and has two stages: each worker
averages its share of the floats into the parameters, then takes the parameters as its copy. A stage
begins when all have ended the one before, and doing one twice is harmless, so whoever replaces a
dead worker goes on in the middle.

    segment                 dtype    meaning
    copies.1 .. copies.P    float32  each worker's own parameters
    copies.words            uint8    line 0: [0] averagings decided on; of all workers before this
                                     call: [1] steps, [2] tokens, [3] version without their updates
                                     line 1 + rank: [0] steps, [1] tokens, [2] updates, [3] ended
                                     stages of averagings
                                     line 1 + P + rank: journal (`words.py`)

Counts of a worker go on over resumes; the parameters are the average of the copies whenever all
workers hold still (`settle`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.layout import PARAMETER_COPY
from mlxhog.arena.process import monotonic_ns
from mlxhog.arena.workers import Phase
from mlxhog.backends.backend import Float32, Grads
from mlxhog.data.ledger import Ledger, TicketState
from mlxhog.optim import clip, updates
from mlxhog.strategies import Context, Idle, Lease, Outcome
from mlxhog.strategies.words import LINE, Journal, Noted, Words

_DECIDED, _STEPS_BEFORE, _TOKENS_BEFORE, _VERSION_BASE = range(4)
_STEPS, _TOKENS, _UPDATES, _STAGES = range(4)


def copy_segments(workers: int) -> dict[str, tuple[str, int]]:
    """Arena segments of the table above."""
    return {
        **{name: ("float32", PARAMETER_COPY) for name in copies(workers)},
        "copies.words": ("uint8", LINE * (1 + 2 * workers)),
    }


def copies(workers: int) -> tuple[str, ...]:
    """The segments that a checkpoint keeps."""
    return tuple(f"copies.{rank + 1}" for rank in range(workers))


def begin(arena: Arena, workers: int, every: int | None, kept: Mapping[str, Any] | None) -> None:
    """Start every copy from the arena's parameters, or where it left off.

    Args:
        arena: its parameters and counters are in place, its workers not started.
        workers: of the run.
        every: steps of each worker between averagings.
        kept: what `position` said when the checkpoint was taken by as many workers; its copies are
            filled in by the caller.
    """
    words, counters = Words(arena.segment("copies.words")), arena.counters
    if kept is None:
        words.store(0, _VERSION_BASE, counters.load("version"))
        for name in copies(workers):
            updates.snapshot(arena.segment(name), arena.params)
        return
    counters.store("first_ticket", kept["first_ticket"])
    for rank in range(workers):
        for word, name in ((_STEPS, "steps"), (_TOKENS, "tokens"), (_UPDATES, "updates")):
            words.store(1 + rank, word, kept[name][rank])
    words.store(0, _STEPS_BEFORE, sum(kept["steps"]))
    words.store(0, _TOKENS_BEFORE, sum(kept["tokens"]))
    words.store(0, _VERSION_BASE, counters.load("version") - sum(kept["updates"]))
    decided = kept["averagings"] if kept["every"] == every else max(kept["steps"]) // (every or 1)
    words.store(0, _DECIDED, decided)
    for rank in range(workers):
        words.store(1 + rank, _STAGES, 2 * decided)


def position(arena: Arena, workers: int, every: int | None) -> dict[str, Any]:
    """How far each worker is, for a checkpoint; nobody may move."""
    words = Words(arena.segment("copies.words"))

    def of_all(word: int) -> list[int]:
        return [words.load(1 + rank, word) for rank in range(workers)]

    return {
        "first_ticket": arena.counters.load("first_ticket"),
        "steps": of_all(_STEPS),
        "tokens": of_all(_TOKENS),
        "updates": of_all(_UPDATES),
        "averagings": words.load(0, _DECIDED),
        "every": every,
    }


def average(
    arena: Arena, workers: int, out: Float32, begin: int = 0, end: int | None = None
) -> None:
    """Mean of the copies over floats [begin, end), added in rank order; the probe has no place.

    Concurrency: where workers are stepping, elements are of different ages.
    """
    last = arena.layout.probe.offset
    span = slice(min(begin, last), last if end is None else min(end, last))
    first, *others = (arena.segment(name)[span] for name in copies(workers))
    mean = out[span]
    np.copyto(mean, first)
    for other in others:
        mean += other
    if others:
        mean *= np.float32(1.0 / workers)


def settle(arena: Arena, workers: int, ledger: Ledger) -> None:
    """End what dead workers have begun, and make the parameters the average. Nobody may move."""
    words = Words(arena.segment("copies.words"))
    for rank in range(workers):
        number = words.load(1 + rank, _STEPS) * workers + rank
        number += arena.counters.load("first_ticket")
        noted = Journal(words, 1 + workers + rank).read()
        if noted.ticket == number and ledger.state(*ledger.locate(number)) == TicketState.DONE:
            _take_in(arena, words, rank, noted)
            words.store(1 + rank, _STEPS, words.load(1 + rank, _STEPS) + 1)
    decided = words.load(0, _DECIDED)
    for part in (_average_share, _take_average):
        for rank in range(workers):
            part(arena, words, rank, workers, decided)
    average(arena, workers, arena.params)
    arena.counters.store("version", _version(words, workers))


def steps_done(arena: Arena, workers: int) -> int:
    """Steps of this call, of all workers."""
    words = Words(arena.segment("copies.words"))
    return _steps(words, workers) - words.load(0, _STEPS_BEFORE)


def between_averagings(arena: Arena, workers: int) -> bool:
    """Whether no averaging is under way, or about to begin."""
    words = Words(arena.segment("copies.words"))
    ended = 2 * words.load(0, _DECIDED)
    return all(words.load(1 + rank, _STAGES) == ended for rank in range(workers))


def _take_in(arena: Arena, words: Words, rank: int, noted: Noted) -> None:
    """Make what a step was noted to leave what holds; doing it twice changes nothing."""
    arena.workers.entry(rank + 1).opt_step = noted.opt_step
    words.store(1 + rank, _UPDATES, noted.version)
    words.store(1 + rank, _TOKENS, noted.tokens)


def _average_share(arena: Arena, words: Words, rank: int, workers: int, decided: int) -> None:
    """A worker's first stage of an averaging, unless it has ended it: its share of the floats."""
    if words.load(1 + rank, _STAGES) == 2 * decided - 2:
        floats = arena.params.size
        begin, end = floats * rank // workers, floats * (rank + 1) // workers
        average(arena, workers, arena.params, begin, end)
        words.store(1 + rank, _STAGES, 2 * decided - 1)


def _take_average(arena: Arena, words: Words, rank: int, workers: int, decided: int) -> None:
    """Its second stage, when all have ended the first: the average becomes its copy."""
    if words.load(1 + rank, _STAGES) == 2 * decided - 1:
        updates.snapshot(arena.segment(copies(workers)[rank]), arena.params)
        words.store(1 + rank, _STAGES, 2 * decided)


def _steps(words: Words, workers: int) -> int:
    return sum(words.load(1 + rank, _STEPS) for rank in range(workers))


def _version(words: Words, workers: int) -> int:
    applied = sum(words.load(1 + rank, _UPDATES) for rank in range(workers))
    return words.load(0, _VERSION_BASE) + applied


class AvgRuns:
    """One worker's own run, and its part in averagings."""

    def __init__(self, context: Context) -> None:
        """Prepare one worker."""
        self.context = context
        arena = context.arena
        self._words = Words(arena.segment("copies.words"))
        self._line = 1 + context.rank
        self._journal = Journal(self._words, 1 + context.workers + context.rank)
        self._copy = arena.segment(f"copies.{context.slot}")
        # Nobody else writes this copy, so plain stores lose nothing.
        self._target = replace(
            context.target(context.slot), flat=self._copy, mode=updates.WRITE_MODES["racy"]
        )
        self._before = self._words.load(0, _STEPS_BEFORE)
        self._leased = False

    def counts_step(self) -> bool:
        """See `Strategy.counts_step`."""
        return True

    # -- the worker's own run --------------------------------------------------------------------

    def _limit(self) -> int | None:
        """Steps of all workers, those before this call included."""
        limit = self.context.step_limit
        return None if limit is None else self._before + limit

    def claim(self) -> Lease | Idle:
        """Lease this worker's next ticket, after an averaging that is due; see `Strategy.claim`."""
        context, workers = self.context, self.context.workers
        self._take_part()
        own, limit = self._words.load(self._line, _STEPS), self._limit()
        number = own * workers + context.rank
        if context.stopping() or context.used_up() or (limit is not None and number >= limit):
            return Idle.DONE
        if context.paused():
            return Idle.WAIT
        if self._is_due(own):
            if context.rank == 0 and self._all_reached(own):
                self._words.store(0, _DECIDED, self._averagings() + 1)
            return Idle.WAIT
        return self._lease(context.arena.counters.load("first_ticket") + number, own)

    def _lease(self, number: int, own: int) -> Lease | Idle:
        context = self.context
        epoch, ticket = context.ledger.locate(number)
        self._leased = context.ledger.claim_exact(epoch, ticket, context.owner)
        if not self._leased:
            if context.ledger.state(epoch, ticket) != TicketState.DONE:
                return Idle.WAIT  # a whole ring of tickets ahead of the oldest
            if self._journal.read().ticket != number:  # torn when the run before was killed
                self._words.store(self._line, _STEPS, own + 1)
                return Idle.WAIT
        context.entry.ticket = ticket
        return Lease(epoch, ticket)

    def read(self) -> None:
        """Load the worker's own copy; nothing is ever stale."""
        context = self.context
        context.entry.version_read = context.arena.counters.load("version")
        updates.snapshot(context.backend.inbox, self._copy)
        context.backend.refresh()

    def write(self, grads: Grads, lease: Lease, samples: int) -> Outcome:
        """Add the step to the worker's own copy."""
        context, words = self.context, self._words
        entry, ledger = context.entry, context.ledger
        norm = clip.global_norm(grads)
        if self._leased:  # else the one before died with its step behind it
            noted = self._noted(lease, bool(np.isfinite(norm)), samples)
            self._journal.write(noted)
            entry.phase = Phase.APPLY
            ledger.begin_apply(lease.epoch, lease.ticket, context.owner)
            if noted.applied:
                self._apply(grads, norm, noted)
            ledger.finish(lease.epoch, lease.ticket, context.owner)
        done = self._journal.read()
        _take_in(context.arena, words, context.rank, done)
        entry.ticket = -1
        words.store(self._line, _STEPS, self._number(lease) + 1)
        version = _version(words, context.workers)
        context.arena.counters.store("version", version)
        return Outcome(applied=done.applied, staleness=0, version=version)

    def _number(self, lease: Lease) -> int:
        """Which of the worker's own steps a ticket is, from 0."""
        first = self.context.arena.counters.load("first_ticket")
        return (lease.epoch * self.context.ledger.n + lease.ticket - first) // self.context.workers

    def _noted(self, lease: Lease, finite: bool, samples: int) -> Noted:
        """What will hold once this step is done; `version` counts the worker's own updates."""
        context = self.context
        return Noted(
            opt_step=context.entry.opt_step + finite,
            version=self._words.load(self._line, _UPDATES) + finite,
            tokens=self._words.load(self._line, _TOKENS) + samples * context.config.seq_len,
            applied=finite,
            ticket=lease.epoch * context.ledger.n + lease.ticket,
        )

    def _apply(self, grads: Grads, norm: float, noted: Noted) -> None:
        context = self.context
        context.optimizer.step(
            self._target,
            grads,
            lr=self._lr(),
            step=noted.opt_step,
            seed=context.slot,
            grad_scale=context.grad_scale(norm),
        )

    def _lr(self) -> float:
        """Step size as if all workers were as far as this one."""
        context, words, workers = self.context, self._words, self.context.workers
        tokens = workers * words.load(self._line, _TOKENS) - words.load(0, _TOKENS_BEFORE)
        progress = context.budget.progress(
            steps=workers * words.load(self._line, _STEPS) - self._before,
            tokens=tokens,
            seconds=context.seconds(),
        )
        updates_of_all = workers * words.load(self._line, _UPDATES)
        return context.schedule(progress, words.load(0, _VERSION_BASE) + updates_of_all)

    # -- averagings ------------------------------------------------------------------------------

    def _is_due(self, own: int) -> bool:
        """Whether this worker stands at a mark that all others are going to reach, too."""
        every, workers, limit = (
            self.context.config.average_every,
            self.context.workers,
            self._limit(),
        )
        if every is None:
            return False
        mark = every * (self._averagings() + 1)
        return own == mark and (limit is None or mark * workers < limit)

    def _averagings(self) -> int:
        """Averagings this worker has taken part in; `decided` may be one ahead already."""
        return self._words.load(self._line, _STAGES) // 2

    def _all_reached(self, mark: int) -> bool:
        ranks = range(self.context.workers)
        return all(self._words.load(1 + rank, _STEPS) >= mark for rank in ranks)

    def _take_part(self) -> None:
        """Do what is left of an averaging that rank 0 has decided on."""
        context, words = self.context, self._words
        decided = words.load(0, _DECIDED)
        if words.load(self._line, _STAGES) == 2 * decided:
            return
        for done, part in enumerate((_average_share, _take_average), start=1):
            part(context.arena, words, context.rank, context.workers, decided)
            self._wait_for(2 * decided - 2 + done)

    def _wait_for(self, stages: int) -> None:
        """Wait until every worker has ended so many; the supervisor replaces a dead one.

        The phase stays what it was: amid an averaging nobody holds still for a checkpoint.
        """
        entry, began, nap_s = self.context.entry, monotonic_ns(), 0.0
        ranks: Sequence[int] = range(self.context.workers)
        while any(self._words.load(1 + rank, _STAGES) < stages for rank in ranks):
            entry.beat()
            time.sleep(nap_s)
            nap_s = min(1e-3, nap_s + 2e-5)
        entry.wait_ns += monotonic_ns() - began
