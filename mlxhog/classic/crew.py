"""The worker processes of a classic run: spawned, watched, replaced, ended.

Only the host reaps: a worker's locks are declared free after `waitpid` has said that it is gone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing import Pipe, connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from mlxhog.arena import Arena
from mlxhog.arena.workers import State
from mlxhog.classic import worker
from mlxhog.classic.job import Job
from mlxhog.errors import WorkerFailed
from mlxhog.machine.processes import FAULT_EXIT_CODE, spawn

MOST_DEATHS = 5  # of one rank in one run, as in `mlxhog train`


@dataclass
class _Seat:
    rank: int
    process: SpawnProcess | None = None
    last_words: Connection | None = None
    deaths: int = 0


class Crew:
    """Workers of one arena, ranks 0 .. n - 1 in slots 1 .. n; used by one thread.

    Attributes:
        deaths: workers that died so far.
    """

    def __init__(self, arena: Arena, workers: int, make_job: Callable[[int], Job]) -> None:
        """Prepare the seats; nothing is spawned yet.

        Args:
            arena: created by this process.
            workers: seats.
            make_job: builds the job of a rank.
        """
        self.arena = arena
        self.deaths = 0
        self._seats = [_Seat(rank) for rank in range(workers)]
        self._make_job = make_job

    def spawn(self) -> None:
        """Fill every empty seat."""
        for seat in self._seats:
            if seat.process is None:
                self._spawn(seat)

    def _spawn(self, seat: _Seat) -> None:
        table, slot = self.arena.workers, seat.rank + 1
        table.acquire_slot(slot=slot)
        seat.last_words, theirs = Pipe(duplex=False)
        process = spawn(
            worker.main,
            (self._make_job(seat.rank), theirs),
            name=f"mlxhog-classic-{seat.rank}",
            threads=1,
            daemon=True,
        )
        theirs.close()
        assert process.pid is not None
        table.seated(slot, process.pid)
        seat.process = process

    def running(self) -> list[int]:
        """Ranks of the workers that are up."""
        return [
            seat.rank
            for seat in self._seats
            if seat.process is not None and self._state(seat) == State.RUNNING
        ]

    def _state(self, seat: _Seat) -> int:
        return self.arena.workers.entry(seat.rank + 1).state

    def wait(self, timeout_s: float) -> dict[int, str]:
        """Wait until a worker dies or the time is over; reap the dead.

        Returns:
            How each of them died, by rank. Their seats are empty.

        Raises:
            WorkerFailed: one could not start, met an error that stays, or died too often.
        """
        connection.wait([s.process.sentinel for s in self._seats if s.process], timeout=timeout_s)
        return {
            seat.rank: self._bury(seat)
            for seat in self._seats
            if seat.process is not None and not seat.process.is_alive()
        }

    def _bury(self, seat: _Seat) -> str:
        starting = self._state(seat) == State.STARTING
        code, last_words = self._reap(seat)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.deaths += 1
        seat.deaths += 1
        if code == FAULT_EXIT_CODE:
            raise WorkerFailed(
                f"worker {seat.rank + 1} met an error that no restart cures: {last_words}; see "
                "above, and please report it"
            )
        if starting and code > 0:
            raise WorkerFailed(f"worker {seat.rank + 1} could not start ({how}); see above")
        if seat.deaths > MOST_DEATHS:
            raise WorkerFailed(
                f"worker {seat.rank + 1} died {seat.deaths} times, the last time by {how}; "
                "is something killing processes here, such as a limit on memory?"
            )
        return how

    def _reap(self, seat: _Seat) -> tuple[int, str]:
        """Return a dead worker's exit code, and the error that ended it if it told one."""
        assert seat.process is not None
        assert seat.last_words is not None
        seat.process.join()
        code = seat.process.exitcode
        assert code is not None
        seat.process.close()
        seat.process = None
        last_words = str(seat.last_words.recv()) if code == FAULT_EXIT_CODE else ""
        seat.last_words.close()
        self.arena.workers.mark_dead(seat.rank + 1)
        return code, last_words

    def kill(self, ranks: Collection[int]) -> None:
        """Kill these workers; `wait` reaps them."""
        for seat in self._seats:
            if seat.rank in ranks and seat.process is not None:
                seat.process.kill()

    def stop(self, timeout_s: float) -> None:
        """Wait for workers that were asked to leave, kill those that do not, reap them all."""
        for seat in self._seats:
            if seat.process is None:
                continue
            seat.process.join(timeout_s)
            if seat.process.is_alive():
                seat.process.kill()
            self._reap(seat)
