"""Run a classic problem on one arena: `train` once, or `compare` with the serial reference.

    step of an epoch                               done by  timed
    write the order of the epoch into the arena    host     no
    give each worker a share of it, and gamma      host     no
    all begin together; one native call per share  workers  yes: first begin to last end
    compute objective and errors in float64        host     no

An epoch is one round of the workers; with cyclades a batch is. All begin a round at the same time,
by a clock that all processes share. A worker that dies ends the run.

Lost updates are counted in a last, untimed round with a probe, a shared float: an epoch at learning
rate 0, whose memory traffic is that of training. Workers add 1 to the probe as the strategy writes,
as often as they update the busiest shared coordinate, and a thousand times at least. What is
missing at the end was lost; the share is at least that of the busiest coordinate.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import numpy as np

from mlxhog import _native
from mlxhog.arena import Arena
from mlxhog.arena.child import Child, Failed
from mlxhog.arena.process import monotonic_ns
from mlxhog.base import machine
from mlxhog.display.views import Observer
from mlxhog.errors import ConfigError, WorkerFailed, one_line
from mlxhog.optim import schedules
from mlxhog.research.classic.config import ClassicConfig, ClassicPlan, check
from mlxhog.research.classic.cyclades import ConflictFree, RoundTotals
from mlxhog.research.classic.problem import Int32, Int64, Problem, ProblemMemory
from mlxhog.research.classic.result import ClassicProgress, ClassicResult, Epoch
from mlxhog.research.classic.worker import (
    ORDER,
    WORDS,
    do_share,
    plan_layout,
    prepare,
    problem_memory,
)

DIVERGED = 10.0
"""A run has diverged if its objective exceeds this multiple of the initial one. With a learning
rate that converges the initial objective is the largest, but for noise; 10 leaves room for
noise."""

BEGIN_NS = 200_000  # from the host's sending until the workers begin
POLL_S = 0.01
MIN_PROBE_UPDATES = 1000
MAX_PROBE_EXAMPLES = 1 << 22  # a float32 counts in steps of 1 up to 2^24


def train(
    problem: Problem,
    config: ClassicConfig,
    observer: Observer[ClassicProgress] = lambda progress: None,
) -> ClassicResult:
    """Run a problem by the strategy that `config` names.

    Raises:
        ConfigError: the options contradict each other or the problem.
        EnvironmentLacks: not enough memory.
        WorkerFailed: a worker died.
    """
    return _run(problem, plan_run(problem, config), observer)[-1]


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
    alone = replace(plan, strategy="serial", kind="private", workers=1, probe_every=None)
    results = _run(problem, plan, observer, [] if plan.strategy == "serial" else [alone])
    return results[-1], results[0]


def _run(
    problem: Problem,
    plan: ClassicPlan,
    observer: Observer[ClassicProgress],
    before: Sequence[ClassicPlan] = (),
) -> list[ClassicResult]:
    """Run a problem in one arena, by the plans before this one first."""
    data, initial = problem.data(), problem.initial(plan.config.seed)
    layout = plan_layout(initial, data, problem.n_examples, plan.workers)
    results = list[ClassicResult]()
    with Arena.create(layout, write="racy" if plan.kind == "racy" else "lossless") as arena:
        memory = problem_memory(arena, {name: values.shape for name, values in data.items()})
        for name, view in memory.data.items():
            np.copyto(view, data[name])
        del data
        for one in (*before, plan):
            results.append(_ClassicRun(problem, arena, memory, one, observer).execute())
            if results[-1].status != "done":
                break
    return results


# -- before a run ----------------------------------------------------------------------------------


def plan_run(problem: Problem, config: ClassicConfig) -> ClassicPlan:
    """Decide everything about a run.

    Raises:
        ConfigError: the options contradict each other or the problem.
    """
    defaults, strategy, n = problem.defaults, config.strategy, problem.n_examples
    write = defaults.writes[0] if config.write == "auto" else config.write
    write = write if strategy == "hogwild" else strategy
    check(config, strategy=strategy, write=write, schedule=config.schedule)
    batch = config.batch_size or defaults.batch_size
    most = n // batch
    workers = config.workers or (1 if strategy == "serial" else min(machine.here().cores, most))
    for wrong, message in (
        (strategy == "hogwild" and write not in defaults.writes,
         f"{problem.name} has no --write {write}; it has {' and '.join(defaults.writes)}"),
        (batch > n, f"--batch-size {batch} is more than the {n:,} examples of {problem.name}"),
        (strategy == "cyclades" and batch != 1,
         f"cyclades assigns single examples, not steps of {batch}; add --batch-size 1"),
        (strategy == "serial" and workers != 1,
         f"--strategy serial has one worker, not {workers}; omit --workers"),
        (workers > most,
         f"--workers {workers}, but {problem.name} has {n:,} examples in mini-batches of {batch}; "
         f"every worker needs one mini-batch, so give at most --workers {most}"),
    ):  # fmt: skip
        if wrong:
            raise ConfigError(message)
    private = config.hot if write == "hot-cold" else 0
    can_lose = workers > 1 and strategy != "cyclades"
    return ClassicPlan(
        strategy=strategy,
        kind="private" if strategy in ("serial", "cyclades") else write.replace("-", "_"),
        workers=workers,
        batch=batch,
        epochs=config.epochs or defaults.epochs,
        gamma=partial(learning_rate, config, defaults.lr, defaults.beta),
        probe_every=probe_interval(problem.supports(), private) if can_lose else None,
        config=config,
    )


def learning_rate(config: ClassicConfig, lr: float, beta: float, epoch: int) -> float:
    """The learning rate of an epoch, counted from 1; `lr` and `beta` are the problem's defaults."""
    lr, n = config.lr or lr, config.backoff_epochs
    if config.schedule == "geometric":
        return lr * (config.beta or beta) ** (epoch - 1)
    schedule: schedules.Schedule = schedules.Inverse(steps=n)
    if config.schedule == "backoff":
        schedule = schedules.Backoff(steps=n, beta=config.beta or schedules.BETA)
    return schedule.at(lr, 0.0, epoch - 1)


def probe_interval(supports: tuple[Int64, Int32, int], private: int = 0) -> int | None:
    """Examples of a worker between two additions to the probe.

    The first `private` coordinates are not shared.

    Returns:
        At least 1; None if no example touches a shared coordinate.
    """
    indptr, indices, n = supports
    degrees = np.bincount(indices, minlength=n)[private:]
    examples, most = len(indptr) - 1, int(degrees.max(initial=0))
    return max(1, round(examples / max(most, MIN_PROBE_UPDATES))) if most else None


def epoch_order(n: int, seed: int, epoch: int, sampling: str) -> Int32:
    """The examples of one epoch, (n,) int32, the same for the same seed and epoch.

    A "shuffle" has each example once, "replacement" n independent draws, as the theorem assumes.
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


class _ClassicRun:
    """One run on an arena that holds the data, with its workers; used by one thread."""

    def __init__(
        self,
        problem: Problem,
        arena: Arena,
        memory: ProblemMemory,
        plan: ClassicPlan,
        observer: Observer[ClassicProgress],
    ) -> None:
        self.problem, self.arena, self.memory, self.plan = problem, arena, memory, plan
        self.observer, self.n, self.params = observer, problem.n_examples, memory.params
        self.progress = ClassicProgress(strategy=plan.strategy, epochs=plan.epochs, examples=self.n)
        for name, values in problem.initial(plan.config.seed).items():
            np.copyto(self.params[name], values)
        self.initial, self.epochs = problem.measures(self.params), list[Epoch]()
        self.conflict_free: ConflictFree | None = None
        if plan.workers > 1 and plan.strategy == "cyclades":
            batch = plan.config.component_batch
            self.conflict_free = ConflictFree(problem.supports(), plan.workers, batch, self._tell)
        self.board = _native.ClassicBoard(arena.segment(WORDS), plan.workers)
        self.children = list[Child]()
        self.before = self._done()  # by an earlier run in this arena

    def execute(self) -> ClassicResult:
        """Run to the end, to divergence, or until the observer raises KeyboardInterrupt."""
        status, advice, start_s, lost, plan = "done", "", 0.0, (0, 0), self.plan
        try:
            self.observer(self.progress)
            start_s = self._start()
            for number in range(1, plan.epochs + 1):
                if advice := self._run_epoch(number):
                    status = "diverged"
                    break
            else:
                if plan.probe_every is not None:
                    lost = self._lost_updates(plan.probe_every)
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            self.board.stop()  # also in the middle of a share
            for child in self.children:
                child.close()
        return ClassicResult(
            problem=self.problem.name,
            strategy=plan.strategy,
            write=plan.kind.replace("_", "-") if plan.strategy == "hogwild" else "",
            workers=plan.workers,
            status=status,
            start_s=start_s,
            initial=self.initial,
            epochs=tuple(self.epochs),
            lost_updates=lost[0],
            probe_updates=lost[1],
            advice=advice,
            params={name: values.copy() for name, values in self.params.items()},
        )

    def _run_epoch(self, number: int) -> str:
        """Run and measure an epoch; returns advice if the run diverged in it, else ""."""
        plan, gamma, order = self.plan, self.plan.gamma(number), self.arena.segment(ORDER)
        order[:] = epoch_order(self.n, plan.config.seed, number, plan.config.sampling)
        if self.conflict_free is None:
            totals = self._round(split_range(self.n, plan.workers), gamma)
        else:
            totals = self.conflict_free.epoch(order, self._round, gamma)
        self.epochs.append(Epoch(number, gamma, *totals, self.problem.measures(self.params)))
        self.progress = replace(self.progress, epoch=self.epochs[-1])
        self.observer(self.progress)
        end, most = self.epochs[-1].objective, DIVERGED * max(self.initial["objective"], 1e-30)
        if math.isfinite(end) and end <= most:
            return ""
        lr, usual = plan.gamma(1), self.problem.defaults.lr
        change = f"rose to {end:.3g}" if math.isfinite(end) else f"is {end}"
        return (
            f"diverged: the objective {change} in epoch {number} with --lr {lr:g}; "
            f"try --lr {usual if usual < lr else lr / 10:g}"
        )

    def _lost_updates(self, every: int) -> tuple[int, int]:
        """Run the last round; returns the lost additions to the probe, and all of them."""
        before = {name: values.copy() for name, values in self.params.items()}
        probe = self.arena.probe[:1]
        probe[0] = np.float32(0.0)
        parts = split_range(min(self.n, MAX_PROBE_EXAMPLES), self.plan.workers)
        self._round(parts, 0.0, probe=True)
        for name, values in before.items():
            self.params[name][:] = values
        additions = sum(examples // every for _, examples in parts)
        return additions - int(probe[0]), additions

    # -- workers ---------------------------------------------------------------------------------

    def _start(self) -> float:
        """Spawn the workers, each on a core of its own if there are enough; returns the seconds."""
        began_ns, count = monotonic_ns(), self.plan.workers
        shapes = {name: values.shape for name, values in self.memory.data.items()}
        self.board.reset()
        cores: list[int | None] = sorted(getattr(os, "sched_getaffinity", lambda _: ())(0))
        for rank, core in enumerate(cores[:count] if len(cores) >= count else [None] * count):
            self.children.append(Child(self.arena, rank + 1))
            self.children[rank].start(prepare, rank, core, self.problem.kernel, shapes, self.plan)
        self._answers(range(count))
        return (monotonic_ns() - began_ns) / 1e9

    def _round(
        self, parts: Sequence[tuple[int, int]], gamma: float, *, probe: bool = False
    ) -> RoundTotals:
        """Have parts of the order done; with `probe` workers add to the probe."""
        self.board.reset()
        begin_ns = monotonic_ns() + BEGIN_NS
        busy = [rank for rank, (_, count) in enumerate(parts) if count]
        for rank in busy:
            self.children[rank].start(do_share, *parts[rank], gamma, probe, begin_ns)
        spans = self._answers(busy)
        seconds = max(end for _, end in spans) - min(begin for begin, _ in spans)
        native = sum(end - begin for begin, end in spans)
        return RoundTotals(seconds / 1e9, native / 1e9, sum(count for _, count in parts))

    def _answers(self, ranks: Iterable[int]) -> list[Any]:
        """Wait for an answer of each rank; shows the progress meanwhile."""
        waiting, answers = set(ranks), []
        rank_of: dict[Any, int] = {child.pipe: rank for rank, child in enumerate(self.children)}
        while waiting:
            for pipe in wait(list(rank_of), POLL_S):  # of all: a worker without a share may die
                rank = rank_of[pipe]
                try:
                    answers.append(self.children[rank].await_result(0.0))
                except Failed as failure:
                    why = one_line(str(failure))
                    way_out = "run the command again"
                    if failure.death is not None:
                        less = "use fewer --workers, or end other programs"
                        way_out = failure.death.way_out(why, less_memory=less, otherwise=way_out)
                    raise WorkerFailed(
                        f"worker {rank + 1} failed, and the run with it: {why}; {way_out}"
                    ) from failure
                waiting.discard(rank)
            done = self._done() - self.before - self.n * len(self.epochs)
            self.observer(replace(self.progress, done=done))
        return answers

    def _done(self) -> int:
        return sum(map(self.board.examples, range(self.plan.workers)))

    def _tell(self, message: str) -> None:
        self.observer(replace(self.progress, message=message))
