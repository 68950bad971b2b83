"""The workers of a run doing rounds: who is up, what each is dealt, the clock, and deaths.

A worker that dies is replaced, and those alive do what it left undone of its share (up to 1024 of
its last examples are done a second time; of a queue, the claim in hand is lost and counted), unless
the scheme needs everybody at every step; then the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.process import WatchedTime, monotonic_ns
from mlxhog.classic import handout, places
from mlxhog.classic.course import Plan, Tally
from mlxhog.classic.crew import Crew
from mlxhog.classic.job import Job
from mlxhog.classic.rounds import SEGMENT, Rounds, Share
from mlxhog.classic.watch import Watch
from mlxhog.errors import WorkerFailed

POLL_S = 0.0005
LEAVE_S = 5.0
STALL_S = 60.0  # without an example done by anybody


class Team:
    """As many workers as the plan says; used by one thread."""

    def __init__(
        self, arena: Arena, plan: Plan, make_job: Callable[[int], Job], watch: Watch
    ) -> None:
        """Prepare everything; nothing is spawned yet.

        Args:
            arena: of `places.layout`, filled.
            plan: of the run.
            make_job: builds the job of a rank.
            watch: told how it goes.
        """
        self.plan, self.watch = plan, watch
        self._board = _native.ClassicBoard(arena.segment(places.WORDS), plan.workers)
        self._rounds = Rounds(arena.segment(SEGMENT))
        self._crew = Crew(arena, plan.workers, make_job)
        self._tally, self._base = Tally(), self._examples()
        self._staffed = False

    @property
    def deaths(self) -> int:
        """Workers that died so far."""
        return self._crew.deaths

    # -- life ------------------------------------------------------------------------------------

    def staff(self) -> float:
        """Have every worker up, unless they are; returns the seconds that took."""
        if self._staffed:
            return 0.0
        began = monotonic_ns()
        self._tally, self._base = Tally(), self._examples()
        self._rounds.stay()
        for rank in range(self.plan.workers):
            self._rounds.seat(rank)
        self._crew.spawn()
        while len(self._crew.running()) < self.plan.workers:
            self._look()
        self._staffed = True
        return (monotonic_ns() - began) / 1e9

    def dismiss(self) -> None:
        """Have every worker leave, whatever it is doing."""
        self._board.stop()
        self._rounds.leave()
        self._crew.stop(LEAVE_S)
        self._staffed = False

    # -- work ------------------------------------------------------------------------------------

    def do(self, count: int, like: Share) -> Tally:
        """Have the first `count` examples of the order done, in as many rounds as deaths ask for.

        Args:
            count: examples.
            like: what all shares have in common.

        Raises:
            WorkerFailed: a worker died that cannot be done without, or too often.
        """
        self._tally = Tally()
        pieces = [(0, count)]
        while pieces:
            pieces += self._round(self._deal(pieces.pop(), like))
        return self._tally

    def _deal(self, piece: tuple[int, int], like: Share) -> dict[int, Share]:
        """A part of the piece for everybody who is up; with a queue, all of it."""
        while not (ranks := self._crew.running()):
            self._look()
        parts = [piece] * len(ranks)
        if self.plan.hand_out != "queue":
            parts = handout.split(*piece, len(ranks))
        return {
            rank: replace(like, start=start, count=count)
            for rank, (start, count) in zip(ranks, parts, strict=True)
            if count
        }

    def _round(self, shares: dict[int, Share]) -> list[tuple[int, int]]:
        """Have the shares done; returns what is left of those of workers that died."""
        tally = self._tally
        self._board.reset()
        self._base = self._examples() - tally.examples
        before = {rank: self._board.examples(rank) for rank in shares}
        self._rounds.deal(shares)
        present = self._until(self._rounds.arrived, set(shares))
        self._rounds.go()
        present = self._until(self._rounds.finished, present)
        done = {rank: self._board.examples(rank) - before[rank] for rank in shares}
        spans = [self._rounds.span_ns(rank) for rank in present]
        if spans:
            tally.seconds += (max(end for _, end in spans) - min(at for at, _ in spans)) / 1e9
            tally.native_s += sum(end - at for at, end in spans) / 1e9
        tally.done.update(done)
        tally.died |= present != set(shares)
        if self.plan.hand_out == "queue":  # all have the same share, and nobody takes any more now
            share, taken = next(iter(shares.values())), self._board.take(0)
            rests = [(share.start + taken, share.count - taken)]
        else:
            rests = [
                (share.start + done[rank], share.count - done[rank])
                for rank, share in shares.items()
            ]
        return [(start, count) for start, count in rests if count > 0]

    def _until(self, said: Callable[[int], bool], ranks: set[int]) -> set[int]:
        """Wait until every one of the ranks has said so, or has died; returns those alive."""
        waiting = {rank for rank in ranks if not said(rank)}
        watched = WatchedTime()
        seen, since_s = (waiting, self._examples()), 0.0
        while waiting:
            died = self._look()
            ranks = ranks.difference(died)
            waiting = {rank for rank in waiting if not said(rank) and rank not in died}
            now_s = watched.look()
            if seen != (waiting, self._examples()):
                seen, since_s = (waiting, self._examples()), now_s
            elif now_s - since_s > STALL_S:
                self.watch.tell(f"no example was done for {STALL_S:g} s; killing who is at it")
                self._crew.kill(waiting)
        return ranks

    def _look(self) -> Collection[int]:
        """Wait a moment, show the progress, and replace workers that have died; returns these.

        Raises:
            WorkerFailed: the scheme needs them.
        """
        died = self._crew.wait(POLL_S)
        for rank, how in died.items():
            if self.plan.scheme.needs_all:
                raise WorkerFailed(
                    f"worker {rank + 1} died ({how}), and {self.plan.scheme.name} needs every "
                    "worker at every step, so the run ended; --scheme hogwild goes on without it"
                )
            self.watch.tell(f"worker {rank + 1} died ({how}) and is being replaced")
            self._rounds.seat(rank)
            self._crew.spawn()
        self.watch.beat(self._examples() - self._base)
        return died

    def _examples(self) -> int:
        """Examples that all workers have done so far, in this arena."""
        return sum(self._board.examples(rank) for rank in range(self.plan.workers))
