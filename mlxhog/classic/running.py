"""One run: epochs of rounds, the clock, and what happens when a worker dies.

    order of the epoch -> arena                    host     outside of the clock
    a share of it for each worker, and gamma       host     `rounds.py`
    all begin together; one native call per share  workers  the clock: first begin to last end
    copies averaged, where the scheme has copies   host     in the clock
    objective and errors in float64                host     outside of the clock

A worker that dies is replaced, and those alive do what it left undone of its share (up to 1024 of
its last examples are done a second time), unless the scheme needs everybody at every step; then the
run ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.classic import averaging, divergence, handout, places, probe
from mlxhog.classic.crew import Crew
from mlxhog.classic.job import Job
from mlxhog.classic.problem import Problem
from mlxhog.classic.result import Epoch
from mlxhog.classic.rounds import SEGMENT, Rounds, Share
from mlxhog.classic.schemes import Scheme
from mlxhog.classic.watch import Watch
from mlxhog.errors import WorkerFailed

POLL_S = 0.0005
STALL_S = 60.0  # without an example done by anybody
LEAVE_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What is decided of a run before it begins.

    Attributes:
        scheme: who may write when.
        workers: processes.
        hand_out: of `config.HANDOUTS`.
        average_at_end: schemes with copies: average once, not after every epoch.
        epochs: passes over the examples.
        lr: step size of the first epoch.
        beta: factor on it after every epoch.
        batch: examples in a step.
        sampling: of `config.SAMPLINGS`.
        seed: of the order of examples.
        probe_every: see `probe.every`; None where nobody can lose an update.
    """

    scheme: Scheme
    workers: int
    hand_out: str
    average_at_end: bool
    epochs: int
    lr: float
    beta: float
    batch: int
    sampling: str
    seed: int
    probe_every: int | None

    def gamma(self, epoch: int) -> float:
        """Step size of an epoch, counted from 1."""
        return self.lr * self.beta ** (epoch - 1)


@dataclass
class Tally:
    """What the rounds of one epoch came to."""

    seconds: float = 0.0
    native_s: float = 0.0
    done: Counter[int] = field(default_factory=Counter)

    @property
    def examples(self) -> int:
        """Examples done by all workers; `done` has them by rank."""
        return self.done.total()


@dataclass
class Course:
    """What a run has found so far."""

    initial: dict[str, float]
    epochs: list[Epoch] = field(default_factory=list)
    status: str = "done"
    start_s: float = 0.0
    missed: int = 0
    replaced: int = 0
    lost: int = 0
    raises: int = 0
    advice: str = ""


class Running:
    """A run while it lives, on an arena that holds data and initial values; used by one thread."""

    def __init__(
        self,
        problem: Problem,
        arena: Arena,
        plan: Plan,
        make_job: Callable[[int], Job],
        watch: Watch,
    ) -> None:
        """Prepare everything; nothing is spawned yet.

        Args:
            problem: with its data.
            arena: of `places.layout`, filled.
            plan: of the run.
            make_job: builds the job of a rank.
            watch: told how it goes.
        """
        self.problem, self.arena, self.plan, self.watch = problem, arena, plan, watch
        self.params = places.params(arena)
        self.order = arena.segment(places.ORDER)
        self.board = _native.ClassicBoard(arena.segment(places.WORDS), plan.workers)
        self.rounds = Rounds(arena.segment(SEGMENT))
        self.crew = Crew(arena, plan.workers, make_job)
        self.course = Course(problem.measures(self.params))
        self._base = self._examples()
        self._staffed = False

    def execute(self) -> Course:
        """Run to the end, to divergence, or until the watch raises KeyboardInterrupt.

        Raises:
            WorkerFailed: a worker died that cannot be done without, or too often.
        """
        try:
            self._epochs()
            if self.course.status == "done":
                self._probe()
        except KeyboardInterrupt:
            self.course.status = "interrupted"
        finally:
            self.board.stop()
            self._dismiss()
            self.course.replaced = self.crew.deaths
        return self.course

    def _epochs(self) -> None:
        plan, course = self.plan, self.course
        self.watch.began(plan.scheme.name, plan.epochs, self.problem.n_examples)
        for number in range(1, plan.epochs + 1):
            epoch = self._epoch(number)
            course.epochs.append(epoch)
            self.watch.epoch(epoch)
            if divergence.diverged(epoch.objective, course.initial["objective"]):
                course.status = "diverged"
                usual = self.problem.defaults.lr
                course.advice = divergence.advice(epoch.objective, number, plan.lr, usual)
                return

    # -- an epoch --------------------------------------------------------------------------------

    def _epoch(self, number: int) -> Epoch:
        plan, n = self.plan, self.problem.n_examples
        self.order[:] = handout.order(n, plan.seed, number, plan.sampling)
        tally, self._base = Tally(), self._examples()
        spawned_s = self._staff()
        self.course.start_s += spawned_s
        load = plan.scheme.copies and (number == 1 or not plan.average_at_end)
        like = Share(0, 0, plan.gamma(number), load)
        pieces = [(0, n)]
        while pieces:
            pieces += self._round(self._deal(pieces.pop(), like), tally)
        self.course.missed += n - min(n, tally.examples)
        if plan.scheme.copies:
            averaged_s = self._average()
            if number == plan.epochs or not plan.average_at_end:
                tally.seconds += averaged_s
        if plan.hand_out == "epoch":
            tally.seconds += spawned_s
            self._dismiss()
        return Epoch(
            number=number,
            lr=plan.gamma(number),
            seconds=tally.seconds,
            native_s=tally.native_s,
            examples=tally.examples,
            measures=self.problem.measures(self.params),
        )

    def _average(self) -> float:
        """Average the copies; returns the seconds it took."""
        began = monotonic_ns()
        copies = [places.params(self.arena, rank + 1) for rank in range(self.plan.workers)]
        averaging.average(self.params, copies)
        return (monotonic_ns() - began) / 1e9

    def _probe(self) -> None:
        """Count lost updates; see `probe.py`."""
        if self.plan.probe_every is None:
            return
        self._staff()
        kept = {name: values.copy() for name, values in self.params.items()}
        cell, tally = self.arena.probe[:1], Tally()
        count = min(self.problem.n_examples, probe.MOST_EXAMPLES)
        probe.clear(cell)
        left = self._round(self._deal((0, count), Share(0, 0, 0.0, probe=True)), tally)
        if not left:  # who died had raised the probe more often than it had said
            self.course.raises = probe.raises(tally.done.values(), self.plan.probe_every)
            self.course.lost = probe.lost(cell, self.course.raises)
        for name, values in kept.items():
            self.params[name][:] = values

    # -- a round ---------------------------------------------------------------------------------

    def _deal(self, piece: tuple[int, int], like: Share) -> dict[int, Share]:
        """A part of the piece for everybody who is up; with a queue, all of it."""
        while not (ranks := self.crew.running()):
            self._look()
        parts = [piece] * len(ranks)
        if self.plan.hand_out != "queue":
            parts = handout.split(*piece, len(ranks))
        return {
            rank: replace(like, start=start, count=count)
            for rank, (start, count) in zip(ranks, parts, strict=True)
            if count
        }

    def _round(self, shares: dict[int, Share], tally: Tally) -> list[tuple[int, int]]:
        """Have the shares done; returns what is left of those of workers that died."""
        self.board.reset()
        self._base = self._examples() - tally.examples
        before = {rank: self.board.examples(rank) for rank in shares}
        self.rounds.deal(shares)
        present = self._until(self.rounds.arrived, set(shares))
        self.rounds.go()
        present = self._until(self.rounds.finished, present)
        done = {rank: self.board.examples(rank) - before[rank] for rank in shares}
        spans = [self.rounds.span_ns(rank) for rank in present]
        if spans:
            tally.seconds += (max(end for _, end in spans) - min(at for at, _ in spans)) / 1e9
            tally.native_s += sum(end - at for at, end in spans) / 1e9
        tally.done.update(done)
        if self.plan.hand_out == "queue":
            return []
        rests = [
            (share.start + done[rank], share.count - done[rank]) for rank, share in shares.items()
        ]
        return [(start, count) for start, count in rests if count]

    def _until(self, said: Callable[[int], bool], ranks: set[int]) -> set[int]:
        """Wait until every one of the ranks has said so, or has died; returns those alive."""
        waiting = {rank for rank in ranks if not said(rank)}
        seen, since_ns = (waiting, self._examples()), monotonic_ns()
        while waiting:
            died = self._look()
            ranks = ranks.difference(died)
            waiting = {rank for rank in waiting if not said(rank) and rank not in died}
            if seen != (waiting, self._examples()):
                seen, since_ns = (waiting, self._examples()), monotonic_ns()
            elif monotonic_ns() - since_ns > STALL_S * 1e9:
                self.watch.tell(f"no example was done for {STALL_S:g} s; killing who is at it")
                self.crew.kill(waiting)
        return ranks

    def _look(self) -> Collection[int]:
        """Wait a moment, show the progress, and replace workers that have died; returns these.

        Raises:
            WorkerFailed: the scheme needs them.
        """
        died = self.crew.wait(POLL_S)
        for rank, how in died.items():
            if self.plan.scheme.needs_all:
                raise WorkerFailed(
                    f"worker {rank + 1} died ({how}), and {self.plan.scheme.name} needs every "
                    "worker at every step, so the run ended; --scheme hogwild goes on without it"
                )
            self.watch.tell(f"worker {rank + 1} died ({how}) and is being replaced")
            self.rounds.seat(rank)
            self.crew.spawn()
        self.watch.beat(self._examples() - self._base)
        return died

    def _examples(self) -> int:
        """Examples that all workers have done so far, in this arena."""
        return sum(self.board.examples(rank) for rank in range(self.plan.workers))

    # -- workers ---------------------------------------------------------------------------------

    def _staff(self) -> float:
        """Have every seat filled and its worker up; returns the seconds that took.

        Workers that died are replaced without waiting for it.
        """
        if self._staffed:
            return 0.0
        began = monotonic_ns()
        self.rounds.stay()
        for rank in range(self.plan.workers):
            self.rounds.seat(rank)
        self.crew.spawn()
        while len(self.crew.running()) < self.plan.workers:
            self._look()
        self._staffed = True
        return (monotonic_ns() - began) / 1e9

    def _dismiss(self) -> None:
        self.rounds.leave()
        self.crew.stop(LEAVE_S)
        self._staffed = False
