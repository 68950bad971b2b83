"""Run a classic problem on one arena: `train` once, or `compare` with the serial reference.

    step of an epoch                               done by  timed
    write the order of the epoch into the arena    host     no
    give each worker a share of it, and gamma      host     no; `worker.py`
    all begin together; one native call per share  workers  yes: first begin to last end
    compute objective and errors in float64        host     no

The step size of epoch k is lr * beta^(k - 1), or follows another schedule: `step_size`.

Lost updates are counted in a last round with a probe, a shared float. Workers add 1 to it in the
way in which the scheme writes, as often as they update the busiest shared coordinate: with every
n-th example, but a thousand times at least. (With hot-cold the most frequent coordinates are
private between merges, so it is the busiest of the others.) The number of lost updates is the
number of additions less the final value. Its share is at least the share that the busiest
coordinate loses; other coordinates lose less. The workers run through the examples as in an epoch,
at step size 0: the parameters do not change, and the memory traffic is that of training. This round
is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from mlxhog.arena import Arena
from mlxhog.base import machine
from mlxhog.classic.config import ClassicConfig, RunPlan, check
from mlxhog.classic.cyclades import ConflictFree
from mlxhog.classic.problem import Int32, Int64, Problem, ProblemMemory
from mlxhog.classic.result import ClassicProgress, ClassicResult, Epoch
from mlxhog.classic.worker import ORDER, Workers, plan_layout, problem_memory
from mlxhog.config import schedules
from mlxhog.errors import ConfigError
from mlxhog.report.views import Observer

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
        EnvironmentLacks: not enough memory.
        WorkerFailed: a worker died.
    """
    plan = plan_run(problem, config)
    with _arena(problem, plan) as (arena, memory):
        return _Run(problem, arena, memory, plan, observer).execute()


def compare(
    problem: Problem,
    config: ClassicConfig,
    observer: Observer[ClassicProgress] = lambda progress: None,
) -> tuple[ClassicResult, ClassicResult]:
    """Return the result of `train`, and the result of the serial reference, which runs first.

    If the serial reference diverges or is interrupted, the other run does not begin, and the serial
    result is returned twice.
    """
    plan = plan_run(problem, config)
    with _arena(problem, plan) as (arena, memory):
        alone = replace(plan, scheme="serial", kind="private", workers=1, probe_every=None)
        serial = _Run(problem, arena, memory, alone, observer).execute()
        if serial.status != "done" or plan.scheme == "serial":
            return serial, serial
        return _Run(problem, arena, memory, plan, observer).execute(), serial


# -- before a run ----------------------------------------------------------------------------------


def plan_run(problem: Problem, config: ClassicConfig) -> RunPlan:
    """Decide everything about a run.

    Raises:
        ConfigError: the options contradict each other or the problem.
    """
    defaults, scheme, n = problem.defaults, config.scheme, problem.n_examples
    write = defaults.writes[0] if config.write == "auto" else config.write
    write = write if scheme == "hogwild" else scheme
    check(config, scheme=scheme, write=write, schedule=config.schedule)
    batch = config.batch_size or defaults.batch_size
    most = n // batch
    workers = config.workers or (1 if scheme == "serial" else min(machine.here().cores, most))
    for wrong, message in (
        (scheme == "hogwild" and write not in defaults.writes,
         f"{problem.name} has no --write {write}; it has {' and '.join(defaults.writes)}"),
        (batch > n, f"--batch-size {batch} is more than the {n:,} examples of {problem.name}"),
        (scheme == "cyclades" and batch != 1,
         f"cyclades assigns single examples, not steps of {batch}; add --batch-size 1"),
        (scheme == "serial" and workers != 1,
         f"--scheme serial has one worker, not {workers}; omit --workers"),
        (workers > most,
         f"--workers {workers}, but {problem.name} has {n:,} examples in mini-batches of {batch}; "
         f"every worker needs one mini-batch, so give at most --workers {most}"),
    ):  # fmt: skip
        if wrong:
            raise ConfigError(message)
    private = config.hot if write == "hot-cold" else 0
    can_lose = workers > 1 and scheme != "cyclades"
    return RunPlan(
        scheme=scheme,
        kind="private" if scheme in ("serial", "cyclades") else write.replace("-", "_"),
        workers=workers,
        batch=batch,
        epochs=config.epochs or defaults.epochs,
        gamma=partial(step_size, config, defaults.lr, defaults.beta),
        probe_every=probe_interval(problem.supports(), private) if can_lose else None,
        config=config,
    )


def step_size(config: ClassicConfig, lr: float, beta: float, epoch: int) -> float:
    """The step size of an epoch, counted from 1; `lr` and `beta` are the problem's defaults."""
    lr, n = config.lr or lr, config.backoff_epochs
    if config.schedule == "geometric":
        return lr * (config.beta or beta) ** (epoch - 1)
    schedule: schedules.Schedule = schedules.Inverse(steps=n)
    if config.schedule == "backoff":
        schedule = schedules.Backoff(steps=n, beta=config.beta or schedules.BETA)
    return schedule.at(lr, 0.0, epoch - 1)


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


@contextmanager
def _arena(problem: Problem, plan: RunPlan) -> Iterator[tuple[Arena, ProblemMemory]]:
    """An arena with the data of a problem."""
    initial, data = problem.initial(plan.config.seed), problem.data()
    layout = plan_layout(initial, data, problem.n_examples, plan.workers)
    with Arena.create(layout, write="racy" if plan.kind == "racy" else "lossless") as arena:
        memory = problem_memory(arena, {name: values.shape for name, values in data.items()})
        for name, view in memory.data.items():
            np.copyto(view, data[name])
        del initial, data
        yield arena, memory


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


def split_range(count: int, parts: int) -> list[tuple[int, int]]:
    """(start, count) of contiguous parts; sizes differ by one at most, larger parts come first."""
    least, more = divmod(count, parts)
    return [(k * least + min(k, more), least + (k < more)) for k in range(parts)]


# -- one run ---------------------------------------------------------------------------------------


class _Run:
    """One run on an arena that holds the data; used by one thread."""

    def __init__(
        self,
        problem: Problem,
        arena: Arena,
        memory: ProblemMemory,
        plan: RunPlan,
        observer: Observer[ClassicProgress],
    ) -> None:
        self.problem, self.plan, self.observer = problem, plan, observer
        self.n, self.params = problem.n_examples, memory.params
        self.order, self.probe = arena.segment(ORDER), arena.probe[:1]
        self.progress = ClassicProgress(scheme=plan.scheme, epochs=plan.epochs, examples=self.n)
        for name, values in problem.initial(plan.config.seed).items():
            np.copyto(self.params[name], values)
        self.initial = problem.measures(self.params)
        self.epochs: list[Epoch] = []
        self.conflict_free: ConflictFree | None = None
        if plan.workers > 1 and plan.scheme == "cyclades":
            batch = plan.config.component_batch
            self.conflict_free = ConflictFree(problem.supports(), plan.workers, batch, self._tell)
        self.lost_updates = self.probe_updates = 0
        shapes = {name: values.shape for name, values in memory.data.items()}
        self.workers = Workers(arena, problem.kernel, shapes, plan, self._show)

    def execute(self) -> ClassicResult:
        """Run to the end, to divergence, or until the observer raises KeyboardInterrupt.

        Raises:
            WorkerFailed: a worker died.
        """
        status, advice, start_s, plan = "done", "", 0.0, self.plan
        try:
            self.observer(self.progress)
            start_s = self.workers.start()
            advice = self._run_epochs()
            if advice:
                status = "diverged"
            elif plan.probe_every is not None:
                self._count_lost_updates(plan.probe_every)
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            self.workers.stop()
        return ClassicResult(
            problem=self.problem.name,
            scheme=plan.scheme,
            write=plan.kind.replace("_", "-") if plan.scheme == "hogwild" else "",
            workers=plan.workers,
            status=status,
            start_s=start_s,
            initial=self.initial,
            epochs=tuple(self.epochs),
            lost_updates=self.lost_updates,
            probe_updates=self.probe_updates,
            advice=advice,
            params={name: values.copy() for name, values in self.params.items()},
        )

    def _run_epochs(self) -> str:
        """Run all epochs; returns advice if the run diverged, else ""."""
        plan, parts = self.plan, split_range(self.n, self.plan.workers)
        for number in range(1, plan.epochs + 1):
            self.order[:] = epoch_order(self.n, plan.config.seed, number, plan.config.sampling)
            gamma = plan.gamma(number)
            if self.conflict_free is None:
                totals = self.workers.do(parts, gamma)
            else:
                totals = self.conflict_free.epoch(self.order, self.workers, gamma)
            epoch = Epoch(number, gamma, *totals, self.problem.measures(self.params))
            self.epochs.append(epoch)
            self.progress = replace(self.progress, epoch=epoch)
            self.observer(self.progress)
            most = DIVERGED * max(self.initial["objective"], 1e-30)
            if not math.isfinite(epoch.objective) or epoch.objective > most:
                lr, usual, end = plan.gamma(1), self.problem.defaults.lr, epoch.objective
                change = f"rose to {end:.3g}" if math.isfinite(end) else f"is {end}"
                return (
                    f"diverged: the objective {change} in epoch {number} with --lr {lr:g}; "
                    f"try --lr {usual if usual < lr else lr / 10:g}"
                )
        return ""

    def _count_lost_updates(self, every: int) -> None:
        """Run the last round, which adds to the probe and does not change the parameters."""
        before = {name: values.copy() for name, values in self.params.items()}
        self.probe[0] = np.float32(0.0)
        parts = split_range(min(self.n, MOST_PROBE_EXAMPLES), self.plan.workers)
        self.workers.do(parts, 0.0, probe=True)
        self.probe_updates = sum(examples // every for _, examples in parts)
        self.lost_updates = self.probe_updates - int(self.probe[0])
        for name, values in before.items():
            self.params[name][:] = values

    def _show(self, done: int) -> None:
        self.observer(replace(self.progress, done=done - self.n * len(self.epochs)))

    def _tell(self, message: str) -> None:
        self.observer(replace(self.progress, message=message))
