"""The examples of an epoch, dealt to worker processes in rounds; the dead are replaced.

    --handout  workers are spawned   a worker's work in an epoch
    once       once                  a contiguous share of the order
    epoch      for every epoch       the same; the spawning is part of the epoch
    queue      once                  mini-batches, claimed some at a time from a shared counter

A worker that dies is replaced, and those alive do what it left undone of its share (up to 1024 of
its last examples are done a second time; of a queue, the claim in hand is lost and counted), unless
the scheme needs all workers at every step; then the run ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.worker_pool import Death, WorkerPool, WorkerProcess
from mlxhog.arena.workers import State
from mlxhog.classic import worker
from mlxhog.classic.config import RunSettings
from mlxhog.classic.problem import Int32
from mlxhog.classic.result import Observer
from mlxhog.classic.worker import ROUNDS, WORDS, Rounds, Share, WorkerArgs
from mlxhog.errors import WorkerFailed

MOST_DEATHS = 5  # of one rank in one run, as in `mlxhog train`
POLL_S = 0.0005
STOP_S = 5.0
STALL_S = 60.0  # without an example done by anybody


def epoch_order(n: int, seed: int, epoch: int, sampling: str) -> Int32:
    """The examples of one epoch, (n,) int32, the same for the same seed and epoch.

    Args:
        n: examples.
        seed: of the run.
        epoch: from 1.
        sampling: "shuffle", each example once; or "replacement", n independent draws, as the
            theorem has it.
    """
    rng = np.random.default_rng([seed, epoch])
    if sampling == "replacement":
        return rng.integers(n, size=n, dtype=np.int32)
    return rng.permutation(np.arange(n, dtype=np.int32))


def split_range(start: int, count: int, parts: int) -> list[tuple[int, int]]:
    """(start, count) of contiguous parts, whose sizes differ by one at most, larger ones first."""
    least, more = divmod(count, parts)
    sizes = [least + (k < more) for k in range(parts)]
    starts = np.cumsum([start, *sizes[:-1]])
    return [(int(at), size) for at, size in zip(starts, sizes, strict=True)]


@dataclass
class RoundTotals:
    """What the rounds of one epoch came to.

    Attributes:
        seconds: of the rounds, each from the first worker's begin to the last one's end.
        native_s: seconds inside the native loops, added up over workers.
        done: examples by rank.
        died: whether a worker died in one of them.
    """

    seconds: float = 0.0
    native_s: float = 0.0
    done: Counter[int] = field(default_factory=Counter)
    died: bool = False

    @property
    def examples(self) -> int:
        """Examples done by all workers."""
        return self.done.total()

    def add(self, other: RoundTotals) -> None:
        """Take in those of further rounds."""
        self.seconds += other.seconds
        self.native_s += other.native_s
        self.done.update(other.done)
        self.died |= other.died


class Dispatcher:
    """Deals examples to a worker pool in rounds, times them, and replaces the dead.

    Used by one thread.
    """

    def __init__(
        self,
        arena: Arena,
        settings: RunSettings,
        make_args: Callable[[int], WorkerArgs],
        observer: Observer,
    ) -> None:
        """Prepare everything; nothing is spawned yet.

        Args:
            arena: of `worker.plan_layout`, filled.
            settings: of the run.
            make_args: what the worker of a rank is spawned with.
            observer: told how it goes.
        """
        self.settings, self.observer = settings, observer
        self._arena, self._make_args = arena, make_args
        self._board = _native.ClassicBoard(arena.segment(WORDS), settings.workers)
        self._rounds = Rounds(arena.segment(ROUNDS))
        self._pool = WorkerPool()
        self._deaths: Counter[int] = Counter()  # by rank
        self._totals, self._base = RoundTotals(), self._examples()
        self._started = False

    @property
    def deaths(self) -> int:
        """Workers that died so far."""
        return self._deaths.total()

    # -- processes -------------------------------------------------------------------------------

    def start(self) -> float:
        """Have all workers running; returns the seconds that took, 0 where they were."""
        if self._started:
            return 0.0
        began = monotonic_ns()
        self._totals, self._base = RoundTotals(), self._examples()
        self._rounds.cancel_exit()
        for rank in range(self.settings.workers):
            self._rounds.reset(rank)
            self._spawn(rank)
        while len(self._running()) < self.settings.workers:
            self._look()
        self._started = True
        return (monotonic_ns() - began) / 1e9

    def stop(self) -> None:
        """End every worker, whatever it is doing."""
        self._board.stop()
        self._rounds.request_exit()
        for slot in list(self._pool):
            self._pool.reap(slot, STOP_S)
        self._started = False

    def _spawn(self, rank: int) -> None:
        self._pool[rank + 1] = WorkerProcess(
            worker.main,
            (self._make_args(rank),),
            name=f"mlxhog-classic-{rank}",
            threads=1,
            pipe=True,
            arena=self._arena,
            slots=(rank + 1,),
        )

    def _running(self) -> list[int]:
        """Ranks of the workers that have mapped the arena."""
        return [slot - 1 for slot in sorted(self._pool) if self._state(slot) == State.RUNNING]

    def _state(self, slot: int) -> int:
        return self._arena.workers.entry(slot).state

    def _reap(self, slot: int) -> Death:
        """Reap a dead worker, whom another can replace.

        Raises:
            WorkerFailed: it could not start, met an error that stays, or died too often.
        """
        starting, process = self._state(slot) == State.STARTING, self._pool[slot]
        death = self._pool.reap(slot)
        self._deaths[slot - 1] += 1
        deaths = self._deaths[slot - 1]
        if death.is_fault:
            raise WorkerFailed(
                f"worker {slot} met an error that no restart cures: {process.pipe.recv()}; see "
                "above, and please report it"
            )
        if starting and death.code > 0:
            raise WorkerFailed(f"worker {slot} could not start ({death}); see above")
        if deaths > MOST_DEATHS:
            raise WorkerFailed(
                f"worker {slot} died {deaths} times, the last time by {death}; "
                "is something killing processes here, such as a limit on memory?"
            )
        return death

    # -- work ------------------------------------------------------------------------------------

    def do(self, count: int, share: Share) -> RoundTotals:
        """Have the first `count` examples of the order done, in as many rounds as deaths ask for.

        Args:
            count: examples.
            share: what the shares of all workers have in common.

        Raises:
            WorkerFailed: a worker died that cannot be done without, or too often.
        """
        self._totals = RoundTotals()
        pieces = [(0, count)]
        while pieces:
            pieces += self._round(self._deal(pieces.pop(), share))
        return self._totals

    def do_parts(self, parts: Sequence[tuple[int, int]], share: Share) -> RoundTotals:
        """Have parts of the order, (start, count), done in one round, one by each worker.

        Args:
            parts: of every rank.
            share: what the shares of all workers have in common.

        Raises:
            WorkerFailed: a worker died.
        """
        self._totals = RoundTotals()
        self._round(
            {
                rank: replace(share, start=start, count=count)
                for rank, (start, count) in enumerate(parts)
                if count
            }
        )
        return self._totals

    def _deal(self, piece: tuple[int, int], share: Share) -> dict[int, Share]:
        """A part of the piece for every running worker; with a queue, all of it."""
        while not (ranks := self._running()):
            self._look()
        parts = [piece] * len(ranks)
        if self.settings.handout != "queue":
            parts = split_range(*piece, len(ranks))
        return {
            rank: replace(share, start=start, count=count)
            for rank, (start, count) in zip(ranks, parts, strict=True)
            if count
        }

    def _round(self, shares: dict[int, Share]) -> list[tuple[int, int]]:
        """Have the shares done; returns what workers that died left undone."""
        totals = self._totals
        self._board.reset()
        self._base = self._examples() - totals.examples
        before = {rank: self._board.examples(rank) for rank in shares}
        self._rounds.deal(shares)
        present = self._until(self._rounds.arrived, set(shares))
        self._rounds.go()
        present = self._until(self._rounds.finished, present)
        done = {rank: self._board.examples(rank) - before[rank] for rank in shares}
        spans = [self._rounds.span_ns(rank) for rank in present]
        if spans:
            totals.seconds += (max(end for _, end in spans) - min(at for at, _ in spans)) / 1e9
            totals.native_s += sum(end - at for at, end in spans) / 1e9
        totals.done.update(done)
        totals.died |= present != set(shares)
        if self.settings.handout == "queue":  # all have the same share, and nobody takes more now
            share, claimed = next(iter(shares.values())), self._board.take(0)
            rests = [(share.start + claimed, share.count - claimed)]
        else:
            rests = [
                (share.start + done[rank], share.count - done[rank])
                for rank, share in shares.items()
            ]
        return [(start, count) for start, count in rests if count > 0]

    def _until(self, reached: Callable[[int], bool], ranks: set[int]) -> set[int]:
        """Wait until each of the ranks has reached a point, or has died; returns those alive."""
        waiting = {rank for rank in ranks if not reached(rank)}
        watched = WatchedTime()
        progress, since_s = (waiting, self._examples()), 0.0
        while waiting:
            died = self._look()
            ranks = ranks.difference(died)
            waiting = {rank for rank in waiting if not reached(rank) and rank not in died}
            now_s = watched.look()
            if progress != (waiting, self._examples()):
                progress, since_s = (waiting, self._examples()), now_s
            elif now_s - since_s > STALL_S:
                self.observer.tell(f"no example was done for {STALL_S:g} s; killing who is at it")
                for rank in waiting:
                    self._pool[rank + 1].kill()
        return ranks

    def _look(self) -> Collection[int]:
        """Wait a moment, show the progress, and replace workers that have died; returns these.

        Raises:
            WorkerFailed: the scheme needs them.
        """
        died = {slot - 1: self._reap(slot) for slot in self._pool.wait(POLL_S)}
        scheme = self.settings.scheme
        for rank, death in died.items():
            if scheme.needs_all:
                raise WorkerFailed(
                    f"worker {rank + 1} died ({death}), and {scheme.name} needs every "
                    "worker at every step, so the run ended; --scheme hogwild goes on without it"
                )
            self.observer.tell(f"worker {rank + 1} died ({death}) and is being replaced")
            self._rounds.reset(rank)
            self._spawn(rank)
        self.observer.progress(self._examples() - self._base)
        return died

    def _examples(self) -> int:
        """Examples that all workers have done so far, in this arena."""
        return sum(self._board.examples(rank) for rank in range(self.settings.workers))
