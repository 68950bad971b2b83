"""Deal the examples of an epoch to worker processes in rounds, and replace workers that die.

    --handout  workers are spawned   a worker's work in an epoch
    once       once                  a contiguous share of the order
    epoch      for every epoch       the same; the spawning is part of the epoch
    queue      once                  mini-batches, claimed in small groups from a shared counter

If a worker dies, a new one replaces it, and the living workers do the rest of its share. Up to 1024
of its last examples are done twice; with a queue, its last claim is missed, and counted as missed.
If the scheme needs all workers at every step, the run ends instead.
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
from mlxhog.classic.worker import ROUNDS, WORDS, RoundWords, Share, WorkerArgs
from mlxhog.errors import WorkerFailed
from mlxhog.report.views import Tell

MOST_DEATHS = 5  # per rank and run, as in `mlxhog train`
POLL_S = 0.0005
STOP_S = 5.0
STALL_S = 60.0  # workers are killed after this time without one example done


def epoch_order(n: int, seed: int, epoch: int, sampling: str) -> Int32:
    """The examples of one epoch, (n,) int32, the same for the same seed and epoch.

    Args:
        n: number of examples.
        seed: seed of the run.
        epoch: number of the epoch, from 1.
        sampling: "shuffle", each example once; or "replacement", n independent draws, as the
            theorem assumes.
    """
    rng = np.random.default_rng([seed, epoch])
    if sampling == "replacement":
        return rng.integers(n, size=n, dtype=np.int32)
    return rng.permutation(np.arange(n, dtype=np.int32))


def split_range(start: int, count: int, parts: int) -> list[tuple[int, int]]:
    """(start, count) of contiguous parts; sizes differ by one at most, larger parts come first."""
    least, more = divmod(count, parts)
    sizes = [least + (k < more) for k in range(parts)]
    starts = np.cumsum([start, *sizes[:-1]])
    return [(int(at), size) for at, size in zip(starts, sizes, strict=True)]


@dataclass
class RoundTotals:
    """Totals over the rounds of one epoch.

    Attributes:
        seconds: duration of all rounds, each from the first worker's begin to the last one's end.
        native_s: seconds inside the native loops, summed over workers.
        done: number of examples done, by rank.
        died: whether a worker died in one of the rounds.
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
        """Add the totals of further rounds."""
        self.seconds += other.seconds
        self.native_s += other.native_s
        self.done.update(other.done)
        self.died |= other.died


class Dispatcher:
    """Deals examples to a worker pool in rounds, times them, and replaces dead workers.

    Used by one thread.
    """

    def __init__(
        self,
        arena: Arena,
        settings: RunSettings,
        make_args: Callable[[int], WorkerArgs],
        show: Callable[[int], None],
        tell: Tell,
    ) -> None:
        """Prepare everything; nothing is spawned yet.

        Args:
            arena: an arena planned by `worker.plan_layout`, filled.
            settings: settings of the run.
            make_args: arguments of the worker with a given rank.
            show: called many times a second with the number of examples done in this epoch.
            tell: receives messages about workers for the user.
        """
        self.settings, self._show, self._tell = settings, show, tell
        self._arena, self._make_args = arena, make_args
        self._board = _native.ClassicBoard(arena.segment(WORDS), settings.workers)
        self._rounds = RoundWords(arena.segment(ROUNDS))
        self._pool = WorkerPool()
        self._deaths: Counter[int] = Counter()  # by rank
        self._totals, self._base = RoundTotals(), self._examples()
        self._started = False

    @property
    def deaths(self) -> int:
        """Number of workers that have died so far."""
        return self._deaths.total()

    # -- processes -------------------------------------------------------------------------------

    def start(self) -> float:
        """Start all workers; returns the seconds until all run, 0 if they ran already."""
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
        """End every worker, also in the middle of a share."""
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
        """Reap a dead worker that a new one can replace.

        Raises:
            WorkerFailed: it could not start, died by an error in the code, or died too often.
        """
        starting, process = self._state(slot) == State.STARTING, self._pool[slot]
        death = self._pool.reap(slot)
        self._deaths[slot - 1] += 1
        deaths = self._deaths[slot - 1]
        if death.is_fault:
            raise WorkerFailed(
                f"worker {slot} ended with an error that a restart cannot fix: "
                f"{process.pipe.recv()}; see above, and please report it"
            )
        if starting and death.code > 0:
            raise WorkerFailed(f"worker {slot} could not start ({death}); see above")
        if deaths > MOST_DEATHS:
            raise WorkerFailed(
                f"worker {slot} died {deaths} times, the last time by {death}; "
                "does something kill processes on this machine, such as a memory limit?"
            )
        return death

    # -- work ------------------------------------------------------------------------------------

    def do(self, count: int, share: Share) -> RoundTotals:
        """Have the first `count` examples of the order done; each death adds a round.

        Args:
            count: number of examples.
            share: the settings that the shares of all workers have in common.

        Raises:
            WorkerFailed: a worker died and the scheme needs all, or one worker died too often.
        """
        self._totals = RoundTotals()
        pieces = [(0, count)]
        while pieces:
            pieces += self._round(self._deal(pieces.pop(), share))
        return self._totals

    def do_parts(self, parts: Sequence[tuple[int, int]], share: Share) -> RoundTotals:
        """Have parts of the order, (start, count), done in one round, one part per worker.

        Args:
            parts: the part of each rank.
            share: the settings that the shares of all workers have in common.

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
        """A part of the piece for every running worker; with a queue, the whole piece for each."""
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
        """Have the shares done; returns the parts that dead workers did not do."""
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
        if self.settings.handout == "queue":  # all have the same share, and no worker claims now
            share, claimed = next(iter(shares.values())), self._board.take(0)
            rests = [(share.start + claimed, share.count - claimed)]
        else:
            rests = [
                (share.start + done[rank], share.count - done[rank])
                for rank, share in shares.items()
            ]
        return [(start, count) for start, count in rests if count > 0]

    def _until(self, reached: Callable[[int], bool], ranks: set[int]) -> set[int]:
        """Wait until each rank has reached a point or has died; returns the living ranks."""
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
                self._tell(f"no example was done for {STALL_S:g} s; killing the stalled workers")
                for rank in waiting:
                    self._pool[rank + 1].kill()
        return ranks

    def _look(self) -> Collection[int]:
        """Wait a moment, show the progress, and replace dead workers; returns their ranks.

        Raises:
            WorkerFailed: a worker died and the scheme needs all, or one worker died too often.
        """
        died = {slot - 1: self._reap(slot) for slot in self._pool.wait(POLL_S)}
        scheme = self.settings.scheme
        for rank, death in died.items():
            if scheme.needs_all:
                raise WorkerFailed(
                    f"worker {rank + 1} died ({death}), and {scheme.name} needs every "
                    "worker at every step, so the run ended; --scheme hogwild continues without it"
                )
            self._tell(f"worker {rank + 1} died ({death}) and is being replaced")
            self._rounds.reset(rank)
            self._spawn(rank)
        self._show(self._examples() - self._base)
        return died

    def _examples(self) -> int:
        """Examples that all workers have done so far, in this arena."""
        return sum(self._board.examples(rank) for rank in range(self.settings.workers))
