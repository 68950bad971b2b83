"""One run: epoch after epoch, measured in between, and a round that counts lost updates.

    order of the epoch -> arena                    host     outside of the clock
    a share of it for each worker, and gamma       host     `team.py`, `rounds.py`
    all begin together; one native call per share  workers  the clock: first begin to last end
    copies averaged, where the scheme has copies   host     in the clock
    objective and errors in float64                host     outside of the clock

The step size of epoch k is lr * beta^(k - 1).
"""

from __future__ import annotations

from collections.abc import Callable

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.classic import averaging, divergence, handout, places, probe
from mlxhog.classic.course import Course, Plan
from mlxhog.classic.job import Job
from mlxhog.classic.problem import Problem
from mlxhog.classic.result import Epoch
from mlxhog.classic.rounds import Share
from mlxhog.classic.team import Team
from mlxhog.classic.watch import Watch


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
        self.team = Team(arena, plan, make_job, watch)
        self.course = Course(problem.measures(self.params))

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
            self.team.dismiss()
            self.course.replaced = self.team.deaths
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

    def _epoch(self, number: int) -> Epoch:
        plan, n = self.plan, self.problem.n_examples
        self.order[:] = handout.order(n, plan.seed, number, plan.sampling)
        spawned_s = self.team.staff()
        self.course.start_s += spawned_s
        load = plan.scheme.copies and (number == 1 or not plan.average_at_end)
        tally = self.team.do(n, Share(gamma=plan.gamma(number), load=load))
        self.course.missed += n - min(n, tally.examples)
        if plan.scheme.copies:
            averaged_s = self._average()
            if number == plan.epochs or not plan.average_at_end:
                tally.seconds += averaged_s
        if plan.hand_out == "epoch":
            tally.seconds += spawned_s
            self.team.dismiss()
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
        self.team.staff()
        kept = {name: values.copy() for name, values in self.params.items()}
        cell, count = self.arena.probe[:1], min(self.problem.n_examples, probe.MOST_EXAMPLES)
        probe.clear(cell)
        tally = self.team.do(count, Share(gamma=0.0, probe=True))
        if not tally.died:  # who died may have raised the probe more often than it had said
            self.course.raises = probe.raises(tally.done.values(), self.plan.probe_every)
            self.course.lost = probe.lost(cell, self.course.raises)
        for name, values in kept.items():
            self.params[name][:] = values
