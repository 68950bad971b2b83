"""The worker processes of a classic run, and how the examples of an epoch are dealt to them.

    --handout  workers are spawned   a worker's work in an epoch
    once       once                  a contiguous share of the order
    epoch      for every epoch       the same; the spawning is part of the epoch
    queue      once                  mini-batches, claimed some at a time from a shared counter

A worker that dies is replaced, and those alive do what it left undone of its share (up to 1024 of
its last examples are done a second time; of a queue, the claim in hand is lost and counted), unless
the scheme needs all workers at every step; then the run ends.

Only the host reaps: a worker's locks are declared free after `waitpid` has said that it is gone.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe, connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.arena.workers import State
from mlxhog.classic import worker
from mlxhog.classic.config import RunSettings
from mlxhog.classic.layout import ROUNDS, WORDS, Rounds, Share
from mlxhog.classic.problem import Int32
from mlxhog.classic.result import Observer
from mlxhog.classic.worker import WorkerArgs
from mlxhog.errors import WorkerFailed
from mlxhog.machine.processes import FAULT_EXIT_CODE, spawn

MOST_DEATHS = 5  # of one rank in one run, as in `mlxhog train`
CLAIM_EXAMPLES = 256  # at least so many at a time: one claim costs about as much as ten examples
POLL_S = 0.0005
STOP_S = 5.0
STALL_S = 60.0  # without an example done by anybody


def claim_size(batch: int) -> int:
    """Examples that a worker claims from the queue at a time: whole mini-batches."""
    return batch * max(1, CLAIM_EXAMPLES // batch)


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
class _Worker:
    rank: int
    process: SpawnProcess | None = None
    error_pipe: Connection | None = None
    deaths: int = 0


class WorkerPool:
    """Processes of ranks 0 .. n - 1, in slots 1 .. n of an arena; used by one thread.

    Attributes:
        deaths: workers that died so far.
    """

    def __init__(self, arena: Arena, workers: int, make_args: Callable[[int], WorkerArgs]) -> None:
        """Prepare the pool; nothing is spawned yet.

        Args:
            arena: created by this process.
            workers: most processes.
            make_args: what the worker of a rank is spawned with.
        """
        self.arena = arena
        self.deaths = 0
        self._workers = [_Worker(rank) for rank in range(workers)]
        self._make_args = make_args

    def start(self) -> None:
        """Spawn every worker that is not there."""
        for one in self._workers:
            if one.process is None:
                self._spawn(one)

    def _spawn(self, one: _Worker) -> None:
        table, slot = self.arena.workers, one.rank + 1
        table.acquire_slot(slot=slot)
        one.error_pipe, theirs = Pipe(duplex=False)
        process = spawn(
            worker.main,
            (self._make_args(one.rank), theirs),
            name=f"mlxhog-classic-{one.rank}",
            threads=1,
            daemon=True,
        )
        theirs.close()
        assert process.pid is not None
        table.seated(slot, process.pid)
        one.process = process

    def running(self) -> list[int]:
        """Ranks of the workers that have mapped the arena."""
        return [
            one.rank
            for one in self._workers
            if one.process is not None and self._state(one) == State.RUNNING
        ]

    def _state(self, one: _Worker) -> int:
        return self.arena.workers.entry(one.rank + 1).state

    def wait(self, timeout_s: float) -> dict[int, str]:
        """Wait until a worker dies or the time is over; reap the dead.

        Returns:
            How each of them died, by rank; `start` replaces them.

        Raises:
            WorkerFailed: one could not start, met an error that stays, or died too often.
        """
        sentinels = [one.process.sentinel for one in self._workers if one.process]
        connection.wait(sentinels, timeout=timeout_s)
        return {
            one.rank: self._count_death(one)
            for one in self._workers
            if one.process is not None and not one.process.is_alive()
        }

    def _count_death(self, one: _Worker) -> str:
        """Reap a dead worker; returns how it died."""
        starting = self._state(one) == State.STARTING
        code, message = self._reap(one)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.deaths += 1
        one.deaths += 1
        if code == FAULT_EXIT_CODE:
            raise WorkerFailed(
                f"worker {one.rank + 1} met an error that no restart cures: {message}; see "
                "above, and please report it"
            )
        if starting and code > 0:
            raise WorkerFailed(f"worker {one.rank + 1} could not start ({how}); see above")
        if one.deaths > MOST_DEATHS:
            raise WorkerFailed(
                f"worker {one.rank + 1} died {one.deaths} times, the last time by {how}; "
                "is something killing processes here, such as a limit on memory?"
            )
        return how

    def _reap(self, one: _Worker) -> tuple[int, str]:
        """Return a dead worker's exit code, and the error that ended it if it told one."""
        assert one.process is not None
        assert one.error_pipe is not None
        one.process.join()
        code = one.process.exitcode
        assert code is not None
        one.process.close()
        one.process = None
        message = str(one.error_pipe.recv()) if code == FAULT_EXIT_CODE else ""
        one.error_pipe.close()
        self.arena.workers.mark_dead(one.rank + 1)
        return code, message

    def kill(self, ranks: Collection[int]) -> None:
        """Kill these workers; `wait` reaps them."""
        for one in self._workers:
            if one.rank in ranks and one.process is not None:
                one.process.kill()

    def stop(self, timeout_s: float) -> None:
        """Wait for workers that were asked to end, kill those that do not, reap them all."""
        for one in self._workers:
            if one.process is None:
                continue
            one.process.join(timeout_s)
            if one.process.is_alive():
                one.process.kill()
            self._reap(one)


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
            arena: of `layout.plan_layout`, filled.
            settings: of the run.
            make_args: what the worker of a rank is spawned with.
            observer: told how it goes.
        """
        self.settings, self.observer = settings, observer
        self._board = _native.ClassicBoard(arena.segment(WORDS), settings.workers)
        self._rounds = Rounds(arena.segment(ROUNDS))
        self._pool = WorkerPool(arena, settings.workers, make_args)
        self._totals, self._base = RoundTotals(), self._examples()
        self._started = False

    @property
    def deaths(self) -> int:
        """Workers that died so far."""
        return self._pool.deaths

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
        self._pool.start()
        while len(self._pool.running()) < self.settings.workers:
            self._look()
        self._started = True
        return (monotonic_ns() - began) / 1e9

    def stop(self) -> None:
        """End every worker, whatever it is doing."""
        self._board.stop()
        self._rounds.request_exit()
        self._pool.stop(STOP_S)
        self._started = False

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

    def _deal(self, piece: tuple[int, int], share: Share) -> dict[int, Share]:
        """A part of the piece for every running worker; with a queue, all of it."""
        while not (ranks := self._pool.running()):
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
            share, taken = next(iter(shares.values())), self._board.take(0)
            rests = [(share.start + taken, share.count - taken)]
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
        seen, since_s = (waiting, self._examples()), 0.0
        while waiting:
            died = self._look()
            ranks = ranks.difference(died)
            waiting = {rank for rank in waiting if not reached(rank) and rank not in died}
            now_s = watched.look()
            if seen != (waiting, self._examples()):
                seen, since_s = (waiting, self._examples()), now_s
            elif now_s - since_s > STALL_S:
                self.observer.tell(f"no example was done for {STALL_S:g} s; killing who is at it")
                self._pool.kill(waiting)
        return ranks

    def _look(self) -> Collection[int]:
        """Wait a moment, show the progress, and replace workers that have died; returns these.

        Raises:
            WorkerFailed: the scheme needs them.
        """
        died = self._pool.wait(POLL_S)
        scheme = self.settings.scheme
        for rank, how in died.items():
            if scheme.needs_all:
                raise WorkerFailed(
                    f"worker {rank + 1} died ({how}), and {scheme.name} needs every "
                    "worker at every step, so the run ended; --scheme hogwild goes on without it"
                )
            self.observer.tell(f"worker {rank + 1} died ({how}) and is being replaced")
            self._rounds.reset(rank)
            self._pool.start()
        self.observer.progress(self._examples() - self._base)
        return died

    def _examples(self) -> int:
        """Examples that all workers have done so far, in this arena."""
        return sum(self._board.examples(rank) for rank in range(self.settings.workers))
