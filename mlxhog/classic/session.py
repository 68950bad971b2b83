"""Run a classic problem on one arena: `train` once, or `compare` with the serial reference.

    order of the epoch -> arena                    host     outside of the clock
    a share of it for each worker, and gamma       host     `dispatcher.py`, `worker.py`
    all begin together; one native call per share  workers  the clock: first begin to last end
    copies averaged, where the scheme has copies   host     in the clock
    objective and errors in float64                host     outside of the clock

The step size of epoch k is lr * beta^(k - 1), or another schedule's: `step_sizes`.

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
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.classic.config import (
    SERIAL,
    ClassicConfig,
    RunSettings,
    Scheme,
    check_components,
    check_options,
    choose_scheme,
)
from mlxhog.classic.cyclades import ConflictFree
from mlxhog.classic.dispatcher import Dispatcher, epoch_order
from mlxhog.classic.problem import Float32, Int32, Int64, Problem, check_finite
from mlxhog.classic.result import ClassicResult, Epoch, NoObserver, Observer
from mlxhog.classic.worker import ORDER, Share, WorkerArgs, data_views, param_views, plan_layout
from mlxhog.config.config import BACKOFF_BETA
from mlxhog.errors import ConfigError
from mlxhog.machine import machine
from mlxhog.optim import schedules

MOST_EXAMPLES = 2**31 - 1  # an order is int32

DIVERGED = 10.0
"""Times the initial objective from which on it counts as diverged: the start is the worst that a
step size which converges ever sees, but for noise of an order that 10 leaves room for."""

LEAST_PROBE_UPDATES = 1000
MOST_PROBE_EXAMPLES = 1 << 22  # below 2^24 additions, where float32 stops counting


def train(
    problem: Problem, config: ClassicConfig, observer: Observer | None = None
) -> ClassicResult:
    """Run a problem by the scheme that `config` names.

    Args:
        problem: from `problems.create`, or any other.
        config: None in an option is the problem's own default.
        observer: told how it goes.

    Raises:
        ConfigError: the options contradict each other or the problem.
        DataError: the data hold NaN or infinity.
        EnvironmentLacks: not enough memory.
        WorkerFailed: a worker died that the scheme cannot do without, or several did too often.
    """
    with Session(problem, config) as session:
        return session.run(observer or NoObserver())


def compare(
    problem: Problem, config: ClassicConfig, observer: Observer | None = None
) -> tuple[ClassicResult, ClassicResult]:
    """Return the run of `train` and, done before it, that of the serial reference.

    Where serial diverges, the run is not begun, and the serial one returned for both.
    """
    observer = observer or NoObserver()
    with Session(problem, config) as session:
        serial = session.serial(observer)
        if serial.status != "done" or session.scheme is SERIAL:
            return serial, serial
        return session.run(observer), serial


class Session:
    """A problem in its arena, for one run after another, each from the same initial values.

    Attributes:
        scheme: that the options ask for.
        workers: its processes.
    """

    def __init__(self, problem: Problem, config: ClassicConfig) -> None:
        """Check everything, then create the arena and read the data into it; see `train`."""
        self.problem, self.config = problem, config
        defaults = problem.defaults
        self.scheme = choose_scheme(config.scheme, config.write, defaults)
        check_options(config, self.scheme)
        self.batch = defaults.batch_size if config.batch_size is None else config.batch_size
        check_components(config, self.scheme, self.batch)
        self.workers = count_workers(problem, config, self.scheme, self.batch)
        self.initial, data = problem.initial(config.seed), problem.data()
        check_finite(problem.name, {**self.initial, **data})
        self.shapes = {name: values.shape for name, values in data.items()}
        self.arena = Arena.create(
            plan_layout(
                problem.params(),
                data,
                problem.n_examples,
                self.workers,
                copies=self.scheme.copies,
            ),
            write="racy" if self.scheme.kind == "racy" else "lossless",
        )
        for name, view in data_views(self.arena, self.shapes).items():
            np.copyto(view, data[name])

    def __enter__(self) -> Session:
        """Release the arena when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the arena."""
        self.arena.close()

    def run(self, observer: Observer) -> ClassicResult:
        """The run that the options ask for."""
        return self._run(self.scheme, self.workers, self.config.handout, observer)

    def serial(self, observer: Observer) -> ClassicResult:
        """The same steps by one worker, one after another."""
        return self._run(SERIAL, 1, "once", observer)

    def _run(self, scheme: Scheme, workers: int, handout: str, observer: Observer) -> ClassicResult:
        config, defaults = self.config, self.problem.defaults
        for name, values in param_views(self.arena).items():
            np.copyto(values, self.initial[name])
        coordinates = sum(slot.size for slot in self.arena.layout.slots.values())
        settings = RunSettings(
            scheme=scheme,
            workers=workers,
            handout=handout,
            average_at_end=config.average == "end",
            epochs=defaults.epochs if config.epochs is None else config.epochs,
            lr=defaults.lr if config.lr is None else config.lr,
            batch=self.batch,
            sampling=config.sampling,
            seed=config.seed,
            probe_every=self._probe_every(scheme, workers),
            hot=min(config.hot, coordinates),
            period=config.period,
            component_batch=config.component_batch,
        )
        make_args = partial(self._worker_args, settings, free_cores(workers))
        gamma = step_sizes(config, settings.lr, defaults.beta)
        return _Run(self.problem, self.arena, settings, gamma, make_args, observer).execute()

    def _probe_every(self, scheme: Scheme, workers: int) -> int | None:
        if workers == 1 or scheme.copies or scheme.name == "cyclades":
            return None
        private = self.config.hot if scheme.kind == "hot_cold" else 0
        return probe_interval(self.problem.supports(), private)

    def _worker_args(self, settings: RunSettings, cores: list[int] | None, rank: int) -> WorkerArgs:
        return WorkerArgs(
            handle=self.arena.handle(),
            rank=rank,
            settings=settings,
            kernel=self.problem.kernel,
            shapes=self.shapes,
            core=None if cores is None else cores[rank],
        )


# -- options and data ------------------------------------------------------------------------------


def step_sizes(config: ClassicConfig, lr: float, beta: float) -> Callable[[int], float]:
    """The step size of an epoch, counted from 1.

    Args:
        config: chooses the schedule.
        lr: step size of the first epoch.
        beta: factor after every epoch where `config` names none.
    """
    if config.schedule == "geometric":
        factor = beta if config.beta is None else config.beta
        return lambda epoch: lr * factor ** (epoch - 1)
    if config.schedule == "inverse":
        schedule = schedules.inverse(lr, steps=config.backoff_epochs)
    else:
        factor = BACKOFF_BETA if config.beta is None else config.beta
        schedule = schedules.backoff(lr, steps=config.backoff_epochs, beta=factor)
    return lambda epoch: schedule(0.0, epoch - 1)


def count_workers(problem: Problem, config: ClassicConfig, scheme: Scheme, batch: int) -> int:
    """The number of workers; "auto" is one per core that this process may use.

    Raises:
        ConfigError: there are fewer examples, or the scheme has one worker.
    """
    n = problem.n_examples
    if n > MOST_EXAMPLES:
        raise ConfigError(f"{problem.name} has {n:,} examples; at most {MOST_EXAMPLES:,} work")
    if batch > n:
        raise ConfigError(f"--batch-size {batch} is more than the {n:,} examples of {problem.name}")
    if scheme.one_worker:
        if config.workers not in (None, 1):
            raise ConfigError(
                f"--scheme {scheme.name} has one worker, not {config.workers}; leave --workers out"
            )
        return 1
    most = n // batch
    if config.workers is None:
        return min(machine.here().cores, most)
    if config.workers > most:
        raise ConfigError(
            f"--workers {config.workers}, but {problem.name} has {n:,} examples in mini-batches of "
            f"{batch}; give every worker one, with at most --workers {most}"
        )
    return config.workers


def free_cores(count: int) -> list[int] | None:
    """A core for each of `count` workers; None where there are not as many, or no way to say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:count] if len(allowed) >= count else None


# -- one run ---------------------------------------------------------------------------------------


class _Run:
    """One run on an arena that holds data and initial values; used by one thread."""

    def __init__(
        self,
        problem: Problem,
        arena: Arena,
        settings: RunSettings,
        gamma: Callable[[int], float],
        make_args: Callable[[int], WorkerArgs],
        observer: Observer,
    ) -> None:
        """Prepare everything; nothing is spawned yet.

        Args:
            problem: with its data.
            arena: of `worker.plan_layout`, filled.
            settings: of the run.
            gamma: from an epoch, counted from 1, to its step size.
            make_args: what the worker of a rank is spawned with.
            observer: told how it goes.
        """
        self.problem, self.arena = problem, arena
        self.settings, self.gamma, self.observer = settings, gamma, observer
        self.params = param_views(arena)
        self.order = arena.segment(ORDER)
        self.dispatcher = Dispatcher(arena, settings, make_args, observer)
        self.initial = problem.measures(self.params)
        self.epochs: list[Epoch] = []
        self.start_s, self.missed = 0.0, 0
        self.lost_updates = self.probe_updates = 0
        self._conflict_free: ConflictFree | None = None
        if settings.scheme.name == "cyclades" and settings.workers > 1:
            self._conflict_free = ConflictFree(
                problem.supports(), settings.workers, settings.component_batch, observer.tell
            )

    def execute(self) -> ClassicResult:
        """Run to the end, to divergence, or until the observer raises KeyboardInterrupt.

        Raises:
            WorkerFailed: a worker died that cannot be done without, or too often.
        """
        status, advice = "done", ""
        try:
            advice = self._run_epochs()
            if advice:
                status = "diverged"
            else:
                self._count_lost_updates()
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            self.dispatcher.stop()
        settings, scheme = self.settings, self.settings.scheme
        return ClassicResult(
            problem=self.problem.name,
            scheme=scheme.name,
            write=scheme.kind.replace("_", "-") if scheme.name == "hogwild" else "",
            handout=settings.handout,
            workers=settings.workers,
            status=status,
            start_s=self.start_s,
            initial=self.initial,
            epochs=tuple(self.epochs),
            lost_updates=self.lost_updates,
            probe_updates=self.probe_updates,
            missed=self.missed,
            replaced=self.dispatcher.deaths,
            advice=advice,
            params={name: values.copy() for name, values in self.params.items()},
        )

    def _run_epochs(self) -> str:
        """Run all epochs; returns what to do if the run diverged, else ""."""
        settings = self.settings
        self.observer.began(settings.scheme.name, settings.epochs, self.problem.n_examples)
        for number in range(1, settings.epochs + 1):
            epoch = self._run_epoch(number)
            self.epochs.append(epoch)
            self.observer.epoch(epoch)
            if has_diverged(epoch.objective, self.initial["objective"]):
                usual = self.problem.defaults.lr
                return divergence_advice(epoch.objective, number, settings.lr, usual)
        return ""

    def _run_epoch(self, number: int) -> Epoch:
        settings, n = self.settings, self.problem.n_examples
        copies, last = settings.scheme.copies, number == settings.epochs
        self.order[:] = epoch_order(n, settings.seed, number, settings.sampling)
        start_s = self.dispatcher.start()
        self.start_s += start_s
        load = copies and (number == 1 or not settings.average_at_end)
        share = Share(gamma=self.gamma(number), load=load)
        if self._conflict_free is None:
            totals = self.dispatcher.do(n, share)
        else:
            totals = self._conflict_free.epoch(self.order, self.dispatcher, share)
        self.missed += n - min(n, totals.examples)
        if copies:
            average_s = self._average()
            if last or not settings.average_at_end:
                totals.seconds += average_s
        if settings.handout == "epoch":
            totals.seconds += start_s
            self.dispatcher.stop()
        return Epoch(
            number=number,
            lr=self.gamma(number),
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
            self.probe_updates = count_probe_updates(totals.done.values(), every)
            self.lost_updates = self.probe_updates - int(probe[0])
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
