"""Rounds of fresh gradients, whose sequences free workers claim (Rennala SGD).

A round is one update, along the mean gradient of the sequences of P tickets at the parameters of
the round. P is the number of workers at the start; others may join, and any may leave. Nobody waits
for a given worker. Source: Tyurin and Richtarik 2023, Optimal Time Complexities of Parallel
Stochastic Optimization Methods Under a Fixed Computation Model, arXiv:2305.12387.

1. Workers claim portions of the sequences, and add the gradient of each to a sum of their own (one
   for all is .5 % of a step faster, but repeats no bits: `benchmarks/atomic_add.py`). Portions
   shrink, so that all end together (guided self-scheduling, Polychronopoulos and Kuck 1987); who
   would end last gets none. Who finds none computes a late one again: the first counts.
2. Shares of the mean (`mean.py`) are claimed, then the tickets of the round: ticket k stands for
   share k of the step. At this stage workers wait for each other, as in `sync`.
3. One worker counts the step, and one begins the next round.

The word of a portion is that of its first sequence; a share of the mean has one without ADDING:

    FREE -> CLAIMED(owner) -> ADDING(owner) -> ADDED       one compare-and-swap each
               | late: CLAIMED(other)  | its worker dies: the round is repeated

What may happen: a death or a pause between any two lines. A portion that was claimed is computed by
another worker. A death in ADDING leaves half a sum, so all portions are free again, under the
number of another attempt. A death while a share of the step is applied leaves it torn, as in all
strategies. A worker that is stopped while it adds or applies holds up the round.

What may not happen: a portion in two sums, since ADDING is entered once in an attempt; a sum of
another attempt in the mean, since sums have its number; a share that is applied twice, by the
ledger; a gradient at other parameters, since none is written before all portions are ADDED. A word
of a newer attempt is never overwritten: who has read one finds that the round has changed.

With `determinism=rounds` worker k has the sequences of ticket k, and the bits are those of `sync`.

    word              meaning
    round             2^32 R + number of the attempt; R rounds were begun in this call
    ended             rounds that were counted
    turn              incarnation of the worker that ends or begins a round; 0 is none
    lr, version, opt_step    of the round; updates before it
    tokens, done_before      of this call before the round; steps of it with other strategies
    finite            the last round whose gradient was finite
    opened, round_s   time at which it was begun; mean seconds of a round
    summed, sum_*     of a rank: attempt of its sum, and what is in it, a `BatchSize`
    seconds, gradients       of a rank: its mean time of a sequence, and their number
    free, late        of a rank: when it is expected to be free, and when it counts as late
    portion           of each sequence that is the first of one, see `_Claim` and `_portions`
    share             of each share of the mean
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

from mlxhog.optim.gradients import Grads
from mlxhog.strategies import division, mean
from mlxhog.strategies.mean import MeanGradient
from mlxhog.strategies.rounds import NEVER, is_done
from mlxhog.strategies.strategy import Segments, Strategy
from mlxhog.strategies.worker import BatchSize, Idle, Lease, StrategyWorker, WriteResult

if TYPE_CHECKING:
    from mlxhog.arena import Arena
    from mlxhog.arena.layout import Parameter
    from mlxhog.arena.ledger import Ledger
    from mlxhog.arena.words import Words
    from mlxhog.strategies.context import Context

ATTEMPTS: Final = 1 << 32
SUM: Final = tuple(f"sum_{name}" for name in BatchSize._fields)  # words of a rank
FREE, CLAIMED, ADDING, ADDED = range(4)
LATE: Final = 1.5  # times the expected time of a portion; less is often noise
PATIENCE_NS: Final = 10_000_000  # for workers that are expected to claim, and for late ones
FIRST_NS: Final = 30_000_000_000  # for the first gradient of a worker, whose time is not known
RISES, FALLS, OUTLIER = 0.1, 0.3, 4.0  # of a mean time, which a stall shall hardly change
NAP_S: Final = 2e-4
FORGETTING: Final = 0.995  # factor of the mean time in a round without a sequence


class _Claim(NamedTuple):
    """A portion or a share as its word has it, in 32, 14, 16 and 2 bits."""

    attempt: int
    size: int  # sequences
    owner: int  # low bits of the incarnation: within an attempt there are not as many
    state: int

    @classmethod
    def of(cls, word: int) -> Self:
        return cls(word >> 32, word >> 18 & 0x3FFF, word >> 2 & 0xFFFF, word & 3)

    @property
    def word(self) -> int:
        return self.attempt << 32 | self.size << 18 | self.owner << 2 | self.state


class _Portion(NamedTuple):
    """Sequences `begin` to `begin + size - 1` of a round, and the claim that their word has."""

    begin: int
    size: int
    state: int  # in this attempt
    claim: _Claim


class CollectWorker(StrategyWorker):
    """One worker's part of rounds that any worker ends."""

    counts_tokens = False  # `Collect.end_round` does

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._words: Words = self.strategy.words(context.arena)
        self._mean = MeanGradient(context, self.strategy.slots)
        self._owner, self._in_order = context.owner & 0xFFFF, self.strategy.in_order
        self._begin, self._claim = 0, _Claim(0, 0, 0, FREE)  # the last portion
        self._claimed_ns = 0
        self._attempt, self._is_idle = 0, False  # the newest, and whether it had no portion of it
        self._words["late", context.rank] = 0  # its predecessor may have had a portion

    def counts_step(self) -> bool:
        """Let `Collect.end_round` count."""
        return False

    # -- claims ----------------------------------------------------------------------------------

    def claim(self) -> Lease | Idle:
        from mlxhog.arena.workers import MAX_NONFINITE

        context, words, strategy = self.context, self._words, self.strategy
        word = words["round"]
        round_, attempt = divmod(word, ATTEMPTS)
        if round_ == words["ended"]:
            context.entry.nonfinite_in_row = in_row = round_ - words["finite"]  # by any workers
            if in_row >= MAX_NONFINITE:
                return Idle.DONE
            if context.paused() and context.training():
                return Idle.WAIT
            limit = NEVER if context.step_limit is None else context.step_limit
            if round_ >= limit or context.is_over(strategy.step_s(context.arena)):
                return Idle.DONE
            return self.claim() if self._alone(partial(self._open, word)) else Idle.WAIT
        portions = self._portions(attempt)
        if words["round"] != word:
            return Idle.WAIT
        if all(one.state == ADDED for one in portions):
            entry, began_ns, waited_ns = context.entry, monotonic_ns(), context.entry.wait_ns
            self._ended = None
            self._finish(word)
            entry.dropped += self._ended is False
            entry.apply_ns += max(0, monotonic_ns() - began_ns - (entry.wait_ns - waited_ns))
            return Idle.WAIT
        if attempt != self._attempt:
            if self._is_idle:
                self._note(0, 0)
            self._attempt, self._is_idle = attempt, True
        if not self._takes_one_of(portions, word):
            return Idle.WAIT
        self._is_idle = False
        first, end = strategy.tickets(context.arena, round_)[0], self._begin + self._claim.size
        n, each = context.ledger.n, context.run.sequences_per_ticket
        parts = division.parts(self._begin, end, each, first, n)
        return Lease(*context.ledger.locate(first), parts)

    def _portions(self, attempt: int) -> list[_Portion]:
        """Return the portions of a round; what is free is one, or one of each ticket in order."""
        each, n = self.context.run.sequences_per_ticket, self.strategy.sequences
        begin, every = 0, list[_Portion]()
        while begin < n:
            claim = _Claim.of(self._words["portion", begin])
            size, state = claim.size, claim.state
            if claim.attempt < attempt:
                size, state = (each if self._in_order else n - begin), FREE
            every.append(_Portion(begin, size, state, claim))
            begin += size
        return every

    def _takes_one_of(self, portions: Sequence[_Portion], round_word: int) -> bool:
        """Claim a portion: a free one, else a late one or that of a dead worker."""
        words, alive, now_ns = self._words, self.strategy.alive(self.context.arena), monotonic_ns()
        free, late = list[_Portion](), list[_Portion]()
        for one in portions:
            rank = alive.get(one.claim.owner)
            if one.state == FREE:
                free.append(one._replace(size=self._share(one.size, alive)))
            elif one.state == CLAIMED and (rank is None or now_ns > words["late", rank]):
                late.append(one)
            elif one.state == ADDING and rank is None:
                # Read again: it may have added, and ended, before it was seen to be gone.
                if words["portion", one.begin] == one.claim.word:
                    words.compare_exchange("round", round_word, round_word + 1)
                    return False
        each = self.context.run.sequences_per_ticket
        return any(
            one.size > 0 and self._takes(one, round_word % ATTEMPTS)
            for one in (*free, *late)
            if not self._in_order or one.begin // each == self.context.rank
        )

    def _takes(self, portion: _Portion, attempt: int) -> bool:
        words, rank, now_ns = self._words, self.context.rank, monotonic_ns()
        took_ns = round(1e9 * portion.size * self._seconds([rank])[0])
        words["free", rank] = now_ns + took_ns
        patience_ns = PATIENCE_NS if words["gradients", rank] else FIRST_NS
        words["late", rank] = now_ns + round(LATE * took_ns) + patience_ns
        self._begin, self._claimed_ns = portion.begin, now_ns
        self._claim = _Claim(attempt, portion.size, self._owner, CLAIMED)
        place = "portion", portion.begin
        return words.compare_exchange(place, portion.claim.word, self._claim.word)

    def _share(self, rest: int, alive: Mapping[int, int]) -> int:
        """Return how many of the sequences that are left this worker claims.

        Others that have nothing to do are expected to claim, too, but only for a moment.
        """
        if self._in_order:
            return rest
        words, own, now_ns = self._words, self.context.rank, monotonic_ns()
        soon = words["opened"] + PATIENCE_NS
        ranks = [k for k in alive.values() if k == own or now_ns < max(words["late", k], soon)]
        ends_ns = (now_ns if rank == own else words["free", rank] for rank in ranks)
        begin_s = [max(0, end_ns - now_ns) / 1e9 for end_ns in ends_ns]
        share = division.sequences(rest, self._seconds(ranks), begin_s)[ranks.index(own)]
        return min(share, self.context.run.micro_batch)

    def _seconds(self, ranks: Sequence[int]) -> list[float]:
        """Return the mean times of a sequence; before the first, those of others, or a second."""
        words = self._words
        every = [words.real(("seconds", rank)) for rank in range(self.strategy.slots)]
        other_s = fmean([one for one in every if one] or [1.0])
        return [every[rank] or other_s for rank in ranks]

    # -- a portion -------------------------------------------------------------------------------

    def read(self) -> None:
        self.context.entry.version_read = self.context.arena.counters.load("version")
        self.context.copy_to_param_buffer()

    def write(self, grads: Grads, lease: Lease, size: BatchSize) -> WriteResult:
        """Add a gradient, unless that of another worker has; after the last, end the round."""
        from mlxhog.arena.workers import WorkerPhase

        context, words, rank, own = self.context, self._words, self.context.rank, self._claim
        place, now_ns = ("portion", self._begin), monotonic_ns()
        self._note(size.sequences, now_ns - self._claimed_ns)
        words["free", rank], words["late", rank] = now_ns, now_ns + PATIENCE_NS
        own = own._replace(state=ADDING)
        while (claim := _Claim.of(words[place]))._replace(owner=own.owner) == self._claim:
            if words.compare_exchange(place, claim.word, own.word):
                break
        else:
            return WriteResult(False, version=context.arena.counters.load("version"), is_stale=True)
        context.entry.phase = WorkerPhase.APPLY
        is_first = words["summed", rank] != own.attempt
        before = BatchSize(0, 0, 0) if is_first else self._summed(rank)
        self._mean.put(rank, grads, size.labels, before.labels)
        for name, one, more in zip(SUM, before, size, strict=True):
            words[name, rank] = one + more
        words["summed", rank] = own.attempt
        words.compare_exchange(place, own.word, own._replace(state=ADDED).word)
        word = words["round"]
        round_, attempt = divmod(word, ATTEMPTS)
        is_last = all(one.state == ADDED for one in self._portions(attempt))
        self._ended = None
        if round_ != words["ended"] and is_last and words["round"] == word:
            self._finish(word)
        version, is_part = context.arena.counters.load("version"), self._ended is None
        context.entry.dropped += self._ended is False
        return WriteResult(applied=bool(self._ended), version=version, is_part=is_part)

    def _note(self, samples: int, took_ns: int) -> None:
        """Update the mean time of a sequence."""
        words, rank = self._words, self.context.rank
        mean_s, n = words.real(("seconds", rank)), words["gradients", rank]
        if samples == 0:
            words.set_real(("seconds", rank), mean_s * FORGETTING)
            return
        took_s = took_ns / 1e9 / samples
        took_s = min(took_s, OUTLIER * mean_s) if n else took_s
        weight = max(RISES if took_s > mean_s else FALLS, 1 / (n + 1))
        words.set_real(("seconds", rank), mean_s + weight * (took_s - mean_s))
        words["gradients", rank] = n + 1

    # -- the end of a round ----------------------------------------------------------------------

    def _finish(self, word: int) -> None:
        """Compute shares of the mean and the step until the round has ended."""
        context, words, (round_, attempt) = self.context, self._words, divmod(word, ATTEMPTS)
        ranks = [k for k in range(self.strategy.slots) if words["summed", k] == attempt]
        sums = {k: self._summed(k) for k in ranks}
        weights = {k: one.labels for k, one in sums.items()}
        counted = sum(one.sequences for one in sums.values())
        self._until(partial(self._averages, word, weights, counted))
        context.seqlock.begin_update()  # before any worker of the round can apply its share
        self._until(partial(self._applies, round_, weights))
        self._until(partial(self._ends, round_))
        context.seqlock.end_update()

    def _summed(self, rank: int) -> BatchSize:
        return BatchSize(*(self._words[name, rank] for name in SUM))

    def _until(self, is_done: Callable[[], bool]) -> None:
        """Do what can be done now, and wait for others where that is not all."""
        entry = self.context.entry
        while not is_done():
            nap_ns = entry.beat()
            time.sleep(NAP_S)
            entry.wait_ns += entry.beat() - nap_ns

    def _averages(self, word: int, weights: Mapping[int, int], counted: int) -> bool:
        """Compute the shares of the mean that no worker has; return whether all are computed."""
        words, n, (round_, attempt) = self._words, self.strategy.workers, divmod(word, ATTEMPTS)
        own, done = _Claim(attempt, 0, self._owner, CLAIMED), 0
        added = own._replace(state=ADDED)
        for share in range(n):
            claim = _Claim.of(word := words["share", share])
            if claim.attempt < attempt or (
                claim == own._replace(owner=claim.owner) and self._is_gone(claim.owner)
            ):
                if not words.compare_exchange(("share", share), word, own.word):
                    continue
                self._check(round_, counted)
                self._mean.average(share, n, weights)
                words["share", share] = added.word
            elif claim.attempt == attempt and claim.state != ADDED:
                continue
            done += 1
        return bool(done == n)

    def _check(self, round_: int, counted: int) -> None:
        """Check that every sequence is in the mean once; the last ticket of an epoch has fewer."""
        n, every = self.context.ledger.n, self.strategy.tickets(self.context.arena, round_)
        wanted, is_whole = self.strategy.sequences, all((number + 1) % n for number in every)
        assert counted == wanted or (counted < wanted and not is_whole), (counted, wanted)

    def _applies(self, round_: int, weights: Mapping[int, int]) -> bool:
        """Apply the shares of the step that no worker has; return whether all are applied."""
        context, words, n = self.context, self._words, self.strategy.workers
        tickets = self.strategy.tickets(context.arena, round_)
        for share, number in enumerate(tickets):
            lease = Lease(*context.ledger.locate(number))
            if context.ledger.claim_exact(lease.epoch, lease.ticket, context.owner):
                self.begin_apply(lease)
                if math.isfinite(mean.norm(context.arena)):
                    lr, step = words.real("lr"), words["opt_step"] + 1
                    self._mean.apply(share, n, weights, lr=lr, step=step)
                self.finish(lease)
        return all(is_done(context.ledger, number) for number in tickets)

    def _ends(self, round_: int) -> bool:
        """Count the round, or let another worker do it; return whether it is counted."""
        if self._words["ended"] < round_:
            self._alone(self._end)
        return bool(self._words["ended"] >= round_)

    def _end(self) -> None:
        self._ended = self.strategy.end_round(self.context.arena, self.context.ledger)

    def _open(self, word: int) -> None:
        """Begin the round after that of a word, unless another worker has."""
        context, words = self.context, self._words
        counters, (round_, attempt) = context.arena.counters, divmod(word, ATTEMPTS)
        if words["round"] != word:
            return
        words["tokens"] = tokens = counters.load("tokens")
        words["version"] = version = counters.load("version")
        words["opt_step"] = context.arena.workers.entry(1).opt_step
        words.set_real("lr", context.lr_at(round_, tokens, version))
        words["opened"] = monotonic_ns()
        words["round"] = (round_ + 1) * ATTEMPTS + attempt + 1

    def _alone(self, act: Callable[[], None]) -> bool:
        """Act unless another worker that lives does now; what a dead one began is done anew."""
        words, holder = self._words, self._words["turn"]
        if holder and not self._is_gone(holder & 0xFFFF):
            return False
        if not words.compare_exchange("turn", holder, self.context.owner):
            return False
        act()
        words["turn"] = 0
        return True

    def _is_gone(self, owner: int) -> bool:
        return owner not in self.strategy.alive(self.context.arena)


@dataclass(frozen=True, kw_only=True)
class Collect(Strategy):
    """Fresh gradients of free workers; reruns with `determinism=rounds` are bitwise equal."""

    Worker: ClassVar[type[Any]] = CollectWorker
    name: ClassVar[str] = "collect"
    about: ClassVar[str] = (
        "rounds of fresh gradients: free workers claim the next sequences of a step"
    )
    repeats: ClassVar[bool] = True
    averages: ClassVar[bool] = True
    one_state: ClassVar[bool] = True
    numbered: ClassVar[bool] = True
    probes: ClassVar[bool] = False

    @property
    def in_order(self) -> bool:
        """Whether every worker has the sequences of its own tickets."""
        return self.run.determinism == "rounds"

    @property
    def fixed(self) -> str | None:
        why = "determinism=rounds divides the sequences among the workers that it begins with"
        return why if self.in_order else None

    @property
    def sequences(self) -> int:
        """Sequences of a round."""
        return self.workers * self.run.sequences_per_ticket

    def batches_per_step(self) -> int:
        return self.workers

    def segments(self, spec: Mapping[str, Parameter]) -> Segments:
        tokens = self.sequences * self.run.seq_len
        return {**super().segments(spec), **mean.segments(self.slots, spec, tokens)}

    def word_groups(self, n_params: int) -> dict[str, tuple[int, str]]:
        return {
            "run": (
                1, "round ended turn lr version opt_step tokens finite opened round_s done_before"
            ),
            "rank": (self.slots, " ".join(SUM) + " summed seconds gradients free late"),
            "sequence": (self.sequences, "portion"),
            "ticket": (self.workers, "share"),
        }  # fmt: skip

    def limit_steps(self, arena: Arena, ledger: Ledger, steps: int | None, done: int = 0) -> None:
        super().limit_steps(arena, ledger, steps, done)
        self.words(arena)["done_before"] = done

    # -- rounds ----------------------------------------------------------------------------------

    def tickets(self, arena: Arena, round_: int) -> range:
        """Return the tickets of a round, counted from the start of training."""
        first = arena.counters.load("first_ticket") + (round_ - 1) * self.workers
        return range(first, first + self.workers)

    def alive(self, arena: Arena) -> dict[int, int]:
        """Return the ranks of the workers that may move, by the owner in a claim."""
        from mlxhog.arena.workers import WorkerState

        gone = WorkerState.FREE, WorkerState.DEAD, WorkerState.FINISHED
        entries = [entry for entry in arena.workers if entry.state not in gone]
        return {entry.incarnation & 0xFFFF: entry.slot - 1 for entry in entries}

    def end_round(self, arena: Arena, ledger: Ledger) -> bool | None:
        """Count a round whose step is applied; twice is the same as once.

        Returns whether its gradient was finite; None if the round is counted already, or not done.

        Concurrency: called by one worker at a time, or while none runs.
        """
        words = self.words(arena)
        round_, attempt = divmod(words["round"], ATTEMPTS)
        every = self.tickets(arena, round_)
        if words["ended"] == round_ or not all(is_done(ledger, number) for number in every):
            return None
        finite = math.isfinite(mean.norm(arena))
        arena.counters.store("version", words["version"] + finite)
        arena.workers.entry(1).opt_step = words["opt_step"] + finite
        took_s, mean_s = (monotonic_ns() - words["opened"]) / 1e9, words.real("round_s")
        words.set_real("round_s", mean_s + RISES * (took_s - mean_s) if mean_s else took_s)
        ranks = (k for k in range(self.slots) if words["summed", k] == attempt)
        tokens = words["tokens"] + sum(words["sum_tokens", k] for k in ranks)
        arena.counters.store("tokens", tokens)
        if finite:
            words["finite"] = round_
        arena.counters.store("steps", words["done_before"] + round_)
        words["ended"] = round_  # last: a successor counts the round again, with the same values
        return finite

    def steps_done(self, arena: Arena, ledger: Ledger) -> int:
        words = self.words(arena)
        return words["done_before"] + words["ended"]

    def step_s(self, arena: Arena) -> float:
        """Return the mean seconds of a round."""
        return self.words(arena).real("round_s")

    def between_steps(self, arena: Arena) -> bool:
        words = self.words(arena)
        return words["round"] // ATTEMPTS == words["ended"]

    def settle(self, arena: Arena, ledger: Ledger) -> None:
        self.end_round(arena, ledger)
        super().settle(arena, ledger)

    def models_sent(self, arena: Arena, steps: int) -> int:
        return steps * 2 * (self.workers - 1)
