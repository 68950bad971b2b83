"""One run: epoch after epoch, measured in between, and a last round that counts lost updates.

    order of the epoch -> arena                    host     outside of the clock
    a share of it for each worker, and gamma       host     `dispatcher.py`, `layout.py`
    all begin together; one native call per share  workers  the clock: first begin to last end
    copies averaged, where the scheme has copies   host     in the clock
    objective and errors in float64                host     outside of the clock

The step size of epoch k is lr * beta^(k - 1).

How often is an update lost? The last round counts it with a probe: one float to which 1 is added in
the way in which the scheme writes (by load and store where it is racy, by compare-and-swap where it
is lossless, in the own turn where there are turns), and as often as the busiest coordinate that
workers share is touched: with every n-th example, or a thousand times if that is more. (With
hot-cold the head is private between merges, so that is the busiest of the others.) Lost is what the
probe lacks in the end: at least the share that the busiest coordinate loses, and others lose less.
The workers run through the examples as in an epoch, at step size 0, so the parameters stay as they
are and memory traffic is that of training. The round lies outside of the clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.classic.config import RunSettings
from mlxhog.classic.dispatcher import Dispatcher, epoch_order
from mlxhog.classic.layout import ORDER, Share, param_views
from mlxhog.classic.problem import Float32, Int32, Int64, Problem
from mlxhog.classic.result import Epoch, Observer
from mlxhog.classic.worker import WorkerArgs

DIVERGED = 10.0
"""Times the initial objective from which on it counts as diverged: the start is the worst that a
step size which converges ever sees, but for noise of an order that 10 leaves room for."""

LEAST_PROBE_UPDATES = 1000
MOST_PROBE_EXAMPLES = 1 << 22  # below 2^24 additions, where float32 stops counting


@dataclass
class RunState:
    """How far a run is and what it has shown; the fields are those of `ClassicResult`."""

    initial: dict[str, float]
    epochs: list[Epoch] = field(default_factory=list)
    status: str = "done"
    start_s: float = 0.0
    missed: int = 0
    replaced: int = 0
    lost_updates: int = 0
    probe_updates: int = 0
    advice: str = ""


class Run:
    """One run on an arena that holds data and initial values; used by one thread."""

    def __init__(
        self,
        problem: Problem,
        arena: Arena,
        settings: RunSettings,
        make_args: Callable[[int], WorkerArgs],
        observer: Observer,
    ) -> None:
        """Prepare everything; nothing is spawned yet.

        Args:
            problem: with its data.
            arena: of `layout.plan_layout`, filled.
            settings: of the run.
            make_args: what the worker of a rank is spawned with.
            observer: told how it goes.
        """
        self.problem, self.arena = problem, arena
        self.settings, self.observer = settings, observer
        self.params = param_views(arena)
        self.order = arena.segment(ORDER)
        self.dispatcher = Dispatcher(arena, settings, make_args, observer)
        self.state = RunState(problem.measures(self.params))

    def execute(self) -> RunState:
        """Run to the end, to divergence, or until the observer raises KeyboardInterrupt.

        Raises:
            WorkerFailed: a worker died that cannot be done without, or too often.
        """
        try:
            self._epochs()
            if self.state.status == "done":
                self._count_lost_updates()
        except KeyboardInterrupt:
            self.state.status = "interrupted"
        finally:
            self.dispatcher.stop()
            self.state.replaced = self.dispatcher.deaths
        return self.state

    def _epochs(self) -> None:
        settings, state = self.settings, self.state
        self.observer.began(settings.scheme.name, settings.epochs, self.problem.n_examples)
        for number in range(1, settings.epochs + 1):
            epoch = self._epoch(number)
            state.epochs.append(epoch)
            self.observer.epoch(epoch)
            if has_diverged(epoch.objective, state.initial["objective"]):
                state.status = "diverged"
                usual = self.problem.defaults.lr
                state.advice = divergence_advice(epoch.objective, number, settings.lr, usual)
                return

    def _epoch(self, number: int) -> Epoch:
        settings, n = self.settings, self.problem.n_examples
        copies, last = settings.scheme.copies, number == settings.epochs
        self.order[:] = epoch_order(n, settings.seed, number, settings.sampling)
        start_s = self.dispatcher.start()
        self.state.start_s += start_s
        load = copies and (number == 1 or not settings.average_at_end)
        totals = self.dispatcher.do(n, Share(gamma=settings.gamma(number), load=load))
        self.state.missed += n - min(n, totals.examples)
        if copies:
            average_s = self._average()
            if last or not settings.average_at_end:
                totals.seconds += average_s
        if settings.handout == "epoch":
            totals.seconds += start_s
            self.dispatcher.stop()
        return Epoch(
            number=number,
            lr=settings.gamma(number),
            seconds=totals.seconds,
            native_s=totals.native_s,
            examples=totals.examples,
            measures=self.problem.measures(self.params),
        )

    def _average(self) -> float:
        """Average the copies; returns the seconds it took."""
        began = monotonic_ns()
        copies = [param_views(self.arena, rank + 1) for rank in range(self.settings.workers)]
        average_copies(self.params, copies)
        return (monotonic_ns() - began) / 1e9

    def _count_lost_updates(self) -> None:
        """Run the last round, which adds to the probe; the parameters stay as they are."""
        every = self.settings.probe_every
        if every is None:
            return
        self.dispatcher.start()
        before = {name: values.copy() for name, values in self.params.items()}
        probe, count = self.arena.probe[:1], min(self.problem.n_examples, MOST_PROBE_EXAMPLES)
        probe[0] = np.float32(0.0)
        totals = self.dispatcher.do(count, Share(gamma=0.0, probe=True))
        if not totals.died:  # who died may have added to the probe more often than it had said
            self.state.probe_updates = count_probe_updates(totals.done.values(), every)
            self.state.lost_updates = self.state.probe_updates - int(probe[0])
        for name, values in before.items():
            self.params[name][:] = values


def average_copies(shared: Mapping[str, Float32], copies: Sequence[Mapping[str, Float32]]) -> None:
    """Set every shared parameter to the mean of its copies, summed in float64 in their order.

    The mean of one copy is that copy, bit for bit (MapReduce, scheme `avg_runs`).

    Concurrency: nobody may be writing the copies.
    """
    for name, target in shared.items():
        total = copies[0][name].astype(np.float64)
        for copy in copies[1:]:
            total += copy[name]
        np.copyto(target, total / len(copies), casting="same_kind")


def has_diverged(objective: float, initial: float) -> bool:
    """Whether the objective is not finite, or far above its initial value."""
    return not math.isfinite(objective) or objective > DIVERGED * max(initial, 1e-30)


def divergence_advice(objective: float, epoch: int, lr: float, usual: float) -> str:
    """What happened, and a step size to try.

    Args:
        objective: after `epoch`.
        epoch: counted from 1.
        lr: step size of the first epoch.
        usual: the problem's own.
    """
    what = f"rose to {objective:.3g}" if math.isfinite(objective) else f"is {objective}"
    smaller = usual if usual < lr else lr / 10
    return f"diverged: the objective {what} in epoch {epoch} with --lr {lr:g}; try --lr {smaller:g}"


def probe_interval(supports: tuple[Int64, Int32, int], private: int = 0) -> int | None:
    """Examples of a worker between two additions to the probe.

    Args:
        supports: of the problem.
        private: so many coordinates, the first ones, are not shared.

    Returns:
        At least 1; None where no example touches a shared coordinate.
    """
    indptr, indices, n = supports
    degrees = np.bincount(indices, minlength=n)[private:]
    examples, most = len(indptr) - 1, int(degrees.max(initial=0))
    return max(1, round(examples / max(most, LEAST_PROBE_UPDATES))) if most else None


def count_probe_updates(done: Iterable[int], every: int) -> int:
    """Additions to the probe by workers that did so many examples each."""
    return sum(examples // every for examples in done)
