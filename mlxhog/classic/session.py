"""Run a classic problem on one arena: `train` once, or `compare` with the serial reference.

    step of an epoch                               done by  timed
    write the order of the epoch into the arena    host     no
    give each worker a share of it, and gamma      host     no; `dispatcher.py`, `worker.py`
    all begin together; one native call per share  workers  yes: first begin to last end
    average the copies, if the scheme has copies   host     yes
    compute objective and errors in float64        host     no

The step size of epoch k is lr * beta^(k - 1), or follows another schedule: `step_sizes`.

Lost updates are counted in a last round with a probe, a shared float. Workers add 1 to it in the
way in which the scheme writes: by load and store (racy), by compare-and-swap (lossless), or in
their turn (schemes with turns). They do it as often as they update the busiest shared coordinate:
with every n-th example, but a thousand times at least. (With hot-cold the most frequent coordinates
are private between merges, so it is the busiest of the others.) The number of lost updates is the
number of additions less the final value. Its share is at least the share that the busiest
coordinate loses; other coordinates lose less. The workers run through the examples as in an epoch,
at step size 0: the parameters do not change, and the memory traffic is that of training. This round
is not timed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.process import monotonic_ns
from mlxhog.classic.config import (
    SERIAL,
    ClassicConfig,
    RunScheme,
    RunSettings,
    check_components,
    check_options,
    choose_scheme,
)
from mlxhog.classic.cyclades import ConflictFree
from mlxhog.classic.dispatcher import Dispatcher, epoch_order
from mlxhog.classic.problem import Float32, Int32, Int64, Problem, check_finite
from mlxhog.classic.result import ClassicProgress, ClassicResult, Epoch
from mlxhog.classic.worker import ORDER, Share, WorkerArgs, data_views, param_views, plan_layout
from mlxhog.config import schedules
from mlxhog.errors import ConfigError
from mlxhog.machine import machine
from mlxhog.report.views import Observer

MOST_EXAMPLES = 2**31 - 1  # the order of examples is int32

DIVERGED = 10.0
"""A run has diverged if its objective exceeds this multiple of the initial one. With a step size
that converges the initial objective is the largest, but for noise; 10 leaves room for noise."""

LEAST_PROBE_UPDATES = 1000
MOST_PROBE_EXAMPLES = 1 << 22  # a float32 counts in steps of 1 up to 2^24


def train(
    problem: Problem,
    config: ClassicConfig,
    observer: Observer[ClassicProgress] = lambda progress: None,
) -> ClassicResult:
    """Run a problem by the scheme that `config` names.

    Args:
        problem: from `problems.create`, or any other.
        config: its options; None stands for the problem's default.
        observer: receives the progress.

    Raises:
        ConfigError: the options contradict each other or the problem.
        DataError: the data hold NaN or infinity.
        EnvironmentLacks: not enough memory.
        WorkerFailed: a worker died and the scheme needs all, or one worker died too often.
    """
    with ClassicSession(problem, config) as session:
        return session.run(observer)


def compare(
    problem: Problem,
    config: ClassicConfig,
    observer: Observer[ClassicProgress] = lambda progress: None,
) -> tuple[ClassicResult, ClassicResult]:
    """Return the result of `train`, and the result of the serial reference, which runs first.

    If the serial reference diverges or is interrupted, the other run does not begin, and the serial
    result is returned twice.
    """
    with ClassicSession(problem, config) as session:
        serial = session.serial(observer)
        if serial.status != "done" or session.scheme is SERIAL:
            return serial, serial
        return session.run(observer), serial


class ClassicSession:
    """A problem in its arena; runs follow each other, each from the same initial values.

    Attributes:
        scheme: the scheme that the options choose.
        workers: its number of worker processes.
    """

    def __init__(self, problem: Problem, config: ClassicConfig) -> None:
        """Check the options and data, create the arena, and copy the data into it; see `train`."""
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

    def __enter__(self) -> ClassicSession:
        """Release the arena when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the arena."""
        self.arena.close()

    def run(self, observer: Observer[ClassicProgress]) -> ClassicResult:
        """Run with the scheme that the options choose."""
        return self._run(self.scheme, self.workers, self.config.handout, observer)

    def serial(self, observer: Observer[ClassicProgress]) -> ClassicResult:
        """Run the serial reference: the same steps by one worker, in order."""
        return self._run(SERIAL, 1, "once", observer)

    def _run(
        self, scheme: RunScheme, workers: int, handout: str, observer: Observer[ClassicProgress]
    ) -> ClassicResult:
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

    def _probe_every(self, scheme: RunScheme, workers: int) -> int | None:
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
        beta: factor after every epoch if `config.beta` is None.
    """
    if config.schedule == "geometric":
        factor = beta if config.beta is None else config.beta
        return lambda epoch: lr * factor ** (epoch - 1)
    if config.schedule == "inverse":
        schedule: schedules.Schedule = schedules.Inverse(steps=config.backoff_epochs)
    else:
        factor = schedules.BETA if config.beta is None else config.beta
        schedule = schedules.Backoff(steps=config.backoff_epochs, beta=factor)
    return lambda epoch: schedule.at(lr, 0.0, epoch - 1)


def count_workers(problem: Problem, config: ClassicConfig, scheme: RunScheme, batch: int) -> int:
    """The number of workers; None is one per core that this process may use.

    Raises:
        ConfigError: the examples are too few or too many, or the scheme runs with one worker only.
    """
    n = problem.n_examples
    if n > MOST_EXAMPLES:
        raise ConfigError(f"{problem.name} has {n:,} examples; the limit is {MOST_EXAMPLES:,}")
    if batch > n:
        raise ConfigError(f"--batch-size {batch} is more than the {n:,} examples of {problem.name}")
    if scheme.one_worker:
        if config.workers not in (None, 1):
            raise ConfigError(
                f"--scheme {scheme.name} runs with one worker, not {config.workers}; "
                "leave --workers out"
            )
        return 1
    most = n // batch
    if config.workers is None:
        return min(machine.here().cores, most)
    if config.workers > most:
        raise ConfigError(
            f"--workers {config.workers}, but {problem.name} has {n:,} examples in mini-batches of "
            f"{batch}; every worker needs one mini-batch, so give at most --workers {most}"
        )
    return config.workers


def free_cores(count: int) -> list[int] | None:
    """A core for each of `count` workers; None if cores are too few or the system names none."""
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
        observer: Observer[ClassicProgress],
    ) -> None:
        """Prepare everything; nothing is spawned yet.

        Args:
            problem: the problem, with its data.
            arena: an arena planned by `worker.plan_layout`, filled.
            settings: settings of the run.
            gamma: step size of an epoch, counted from 1.
            make_args: arguments of the worker with a given rank.
            observer: receives the progress.
        """
        self.problem, self.arena = problem, arena
        self.settings, self.gamma, self.observer = settings, gamma, observer
        self.progress = ClassicProgress(
            scheme=settings.scheme.name, epochs=settings.epochs, examples=problem.n_examples
        )
        self.params = param_views(arena)
        self.order = arena.segment(ORDER)
        self.dispatcher = Dispatcher(arena, settings, make_args, self._show, self._tell)
        self.initial = problem.measures(self.params)
        self.epochs: list[Epoch] = []
        self.start_s, self.missed = 0.0, 0
        self.lost_updates = self.probe_updates = 0
        self._conflict_free: ConflictFree | None = None
        if settings.scheme.name == "cyclades" and settings.workers > 1:
            self._conflict_free = ConflictFree(
                problem.supports(), settings.workers, settings.component_batch, self._tell
            )

    def execute(self) -> ClassicResult:
        """Run to the end, to divergence, or until the observer raises KeyboardInterrupt.

        Raises:
            WorkerFailed: a worker died and the scheme needs all, or one worker died too often.
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

    def _show(self, done: int) -> None:
        self.observer(replace(self.progress, done=done))

    def _tell(self, message: str) -> None:
        self.observer(replace(self.progress, message=message))

    def _run_epochs(self) -> str:
        """Run all epochs; returns advice if the run diverged, else ""."""
        settings = self.settings
        self.observer(self.progress)
        for number in range(1, settings.epochs + 1):
            epoch = self._run_epoch(number)
            self.epochs.append(epoch)
            self.progress = replace(self.progress, epoch=epoch)
            self.observer(self.progress)
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
        """Run the last round, which adds to the probe and does not change the parameters."""
        every = self.settings.probe_every
        if every is None:
            return
        self.dispatcher.start()
        before = {name: values.copy() for name, values in self.params.items()}
        probe, count = self.arena.probe[:1], min(self.problem.n_examples, MOST_PROBE_EXAMPLES)
        probe[0] = np.float32(0.0)
        totals = self.dispatcher.do(count, Share(gamma=0.0, probe=True))
        if not totals.died:  # a dead worker may have added to the probe more often than it reported
            self.probe_updates = count_probe_updates(totals.done.values(), every)
            self.lost_updates = self.probe_updates - int(probe[0])
        for name, values in before.items():
            self.params[name][:] = values


def average_copies(shared: Mapping[str, Float32], copies: Sequence[Mapping[str, Float32]]) -> None:
    """Set every shared parameter to the mean of its copies, summed in order in float64.

    The mean of one copy is that copy, bit for bit (MapReduce, scheme `avg_runs`).

    Concurrency: no worker may write the copies meanwhile.
    """
    for name, target in shared.items():
        total = copies[0][name].astype(np.float64)
        for copy in copies[1:]:
            total += copy[name]
        np.copyto(target, total / len(copies), casting="same_kind")


def has_diverged(objective: float, initial: float) -> bool:
    """Whether the objective is NaN, infinite, or above `DIVERGED` times its initial value."""
    return not math.isfinite(objective) or objective > DIVERGED * max(initial, 1e-30)


def divergence_advice(objective: float, epoch: int, lr: float, usual: float) -> str:
    """State how the run diverged, and a step size to try.

    Args:
        objective: objective after `epoch`.
        epoch: counted from 1.
        lr: step size of the first epoch.
        usual: the problem's default step size.
    """
    change = f"rose to {objective:.3g}" if math.isfinite(objective) else f"is {objective}"
    smaller = usual if usual < lr else lr / 10
    return (
        f"diverged: the objective {change} in epoch {epoch} with --lr {lr:g}; try --lr {smaller:g}"
    )


def probe_interval(supports: tuple[Int64, Int32, int], private: int = 0) -> int | None:
    """Examples of a worker between two additions to the probe.

    Args:
        supports: the problem's hypergraph.
        private: n; the first n coordinates are not shared.

    Returns:
        At least 1; None if no example touches a shared coordinate.
    """
    indptr, indices, n = supports
    degrees = np.bincount(indices, minlength=n)[private:]
    examples, most = len(indptr) - 1, int(degrees.max(initial=0))
    return max(1, round(examples / max(most, LEAST_PROBE_UPDATES))) if most else None


def count_probe_updates(done: Iterable[int], every: int) -> int:
    """Number of additions to the probe, from the examples that each worker did."""
    return sum(examples // every for examples in done)
