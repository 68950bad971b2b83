"""Several runs of one shape trained as one batched computation, if that is faster.

Runs of the same layers on the same setting, with another seed, step size or weight decay, do the
same operations on other numbers. Small ones spend most of their time between the operations; as a
batch they spend it once. Larger ones are faster alone, with the native operators, one per core. So
a few steps of both ways are timed, and the faster way is used.

Each run of a batch has its own thread, and is an ordinary run otherwise: its arena, optimizer and
evaluations are its own. The last one to arrive at a barrier computes for all.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from mlxhog import backends
from mlxhog.arena import Slot
from mlxhog.backends.backend import Backend, Float32, Grads
from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError
from mlxhog.mad.run import RunConfig
from mlxhog.mad.training.candidate import Prepare, no_preparation
from mlxhog.mad.training.run_plan import RunPlan, make_run_plan
from mlxhog.models import families
from mlxhog.models.mad.config import MADConfig
from mlxhog.optim.gradients import Rows
from mlxhog.report.views import Tell
from mlxhog.strategies import Context

Compute = Callable[[Sequence[Float32], Sequence[Batch]], list[tuple[float, Grads]]]
"""From the parameters and the batch of every run to its loss and gradient."""


class GradientBarrier:
    """The barrier of every step of a batch, at which the gradients are computed together.

    Concurrency: every member is one thread; any may leave at any time.
    """

    def __init__(self, members: int, compute: Compute) -> None:
        """Expect members 0 to `members` - 1."""
        self._compute = compute
        self._members = set(range(members))
        self._requests: dict[int, tuple[Float32, Batch]] = {}
        self._results: dict[int, tuple[float, Grads] | BaseException] = {}
        self._changed = threading.Condition()

    def wait_for_gradient(self, member: int, params: Float32, batch: Batch) -> tuple[float, Grads]:
        """Wait for the others, and return this member's loss and gradient.

        Raises:
            Exception: the error of the computation, in every member.
        """
        with self._changed:
            self._requests[member] = (params, batch)
            self._compute_if_complete()
            while member not in self._results:
                self._changed.wait()
            answer = self._results.pop(member)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leave(self, member: int) -> None:
        """Let the others continue without this member."""
        with self._changed:
            self._members.discard(member)
            self._compute_if_complete()

    def _compute_if_complete(self) -> None:
        if not self._members or self._requests.keys() != self._members:
            return
        members = sorted(self._requests)
        params, batches = zip(*(self._requests[member] for member in members), strict=True)
        try:
            self._results.update(zip(members, self._compute(params, batches), strict=True))
        except Exception as error:  # in every member; none waits for ever
            self._results.update(dict.fromkeys(members, error))
        self._requests.clear()
        self._changed.notify_all()


class BatchedBackend:
    """A backend whose gradients are computed at a barrier."""

    forward_share: float | None = None

    def __init__(self, backend: Backend, barrier: GradientBarrier, number: int) -> None:
        """Wrap the backend of one run."""
        self._backend, self._barrier, self._number = backend, barrier, number

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the backend."""
        return getattr(self._backend, name)

    def loss_and_grads(self, batch: Batch) -> tuple[float, Grads]:
        """Wait for the other runs, and return this run's loss and gradients."""
        return self._barrier.wait_for_gradient(self._number, self._backend.inbox, batch)


TIMED = 15
TIMED_S = 1.0
"""Most steps and most seconds of the timing of both ways in turns, after a warm-up step."""

RunOne = Callable[[int, Prepare], None]
"""Executes one run by its number: `candidate.train` with the given `prepare`. Raises nothing."""


@dataclass(frozen=True)
class TimedChoice:
    """The faster way, with the time of one step of one run.

    Attributes:
        batched: whether the runs are trained together.
        alone_s: of a step alone, with the native operators; NaN if it was not timed.
        together_s: its share of the batched computation; infinite if that fails.
        why: the two times in a sentence, or the reason of the failure.
    """

    batched: bool
    alone_s: float
    together_s: float
    why: str


def train_together(configs: Sequence[RunConfig], run_one: RunOne, tell: Tell) -> TimedChoice:
    """Execute runs of one shape, together or one after the other, in the faster way.

    Scores are those of single runs up to rounding.

    Args:
        configs: two or more.
        run_one: executes a run; called from a thread for each if they are trained together.
        tell: gets the choice and its reason before the first run begins.

    Raises:
        ConfigError: the runs differ in more than seed, step size and weight decay, or have several
            workers each.
    """
    if len({config.shape() for config in configs}) != 1:
        raise ConfigError(
            "runs that are trained together differ in more than seed, lr and weight decay; "
            "leave out --batch-candidates"
        )
    plans = [make_run_plan(config) for config in configs]
    if len(plans[0].workers) != 1:
        raise ConfigError(
            f"--batch-candidates trains runs of one worker, these have {configs[0].workers}; "
            "leave out one of the two"
        )
    choice = measure(plans)
    tell(choice.why)
    if choice.batched:
        in_threads(plans, run_one)
    else:
        for number in range(len(plans)):
            run_one(number, no_preparation)
    return choice


def measure(plans: Sequence[RunPlan]) -> TimedChoice:
    """Time a step of one run alone, and of all of them together."""
    plan, n = plans[0], len(plans)
    backend = plan.workers[0].backend
    flats = np.zeros((n, plan.layout.n_floats), np.float32)
    for flat, of in zip(flats, plans, strict=True):
        for name, value in families.init_params(of.model, of.config.seed).items():
            slot = plan.layout.slots[name]
            flat[slot.offset : slot.offset + slot.size] = value.reshape(-1)
    batches = [of.task_rows.batches().at(0, 0) for of in plans]
    one = backends.create(
        backend, threads=plan.workers[0].threads, kernels=plan.kernels[0], cpu_blas="auto"
    )
    try:
        if plan.kernels[0] == "metal":  # as its worker does, which reports the faults
            one.check_kernels()
        one.bind(plan.model, plan.layout.slots, plan.layout.n_floats, None)
        one.inbox[:] = flats[0]
        one.refresh()
        compute = partial(_compute, plan.model, plan.layout.slots, backend, list(flats), batches)
        try:
            alone_s, all_s = _shortest(
                _clock(plan), lambda: one.loss_and_grads(batches[0]), compute
            )
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            what = " ".join(str(error).split())[:200]
            why = f"{n} runs one after the other: as one batched computation they fail: {what}"
            return TimedChoice(False, math.nan, math.inf, why)
    finally:
        one.close()
    together_s = all_s / n
    batched = together_s < alone_s
    how = "as one batched computation" if batched else "one after the other"
    why = (
        f"{n} runs {how}: a step takes {alone_s * 1e3:.2f} ms alone, "
        f"{together_s * 1e3:.2f} ms as one of {n}"
    )
    return TimedChoice(batched, alone_s, together_s, why)


def _clock(plan: RunPlan) -> Callable[[], float]:
    """Return a clock: for one CPU thread the process time, which excludes other programs."""
    (worker,) = plan.workers
    on_one_core = worker.backend.endswith(":cpu") and worker.threads == 1
    return time.process_time if on_one_core else time.perf_counter


def _shortest(clock: Callable[[], float], *ways: Callable[[], object]) -> list[float]:
    """Return the shortest time of each way: other programs can only lengthen one."""
    for way in ways:
        way()
    times: list[list[float]] = [[] for _ in ways]
    while len(times[0]) < TIMED and sum(map(sum, times)) < TIMED_S:
        for way, seconds in zip(ways, times, strict=True):
            began = clock()
            way()
            seconds.append(clock() - began)
    return [min(seconds) for seconds in times]


def in_threads(plans: Sequence[RunPlan], run_one: RunOne) -> None:
    """Execute runs of one shape as one computation, each in its own thread."""
    plan, n = plans[0], len(plans)
    compute = partial(_compute, plan.model, plan.layout.slots, plan.workers[0].backend)
    barrier = GradientBarrier(n, compute)

    def run(number: int) -> None:
        def prepare(context: Context) -> None:
            context.backend = cast(Backend, BatchedBackend(context.backend, barrier, number))

        try:
            run_one(number, prepare)
        finally:
            barrier.leave(number)

    threads = [
        threading.Thread(target=run, args=(number,), name=f"run-{number}") for number in range(n)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _compute(
    model: MADConfig,
    slots: dict[str, Slot],
    backend: str,
    params: Sequence[Float32],
    batches: Sequence[Batch],
) -> list[tuple[float, Grads]]:
    """Return loss and gradients of every run, as its own backend would."""
    framework, _, device = backend.partition(":")
    module = importlib.import_module(f"{backends.__name__}.{framework}")
    flats = np.stack(params)
    x, y = (np.stack([getattr(batch, part) for batch in batches]) for part in ("x", "y"))
    losses, grads = module.losses_and_grads_of_many(model, slots, flats, x, y, device=device)
    embedding = families.embedding(model)
    results = []
    for number, loss in enumerate(losses):
        own: Grads = {name: values[number] for name, values in grads.items()}
        looked_up = np.unique(x[number]).astype(np.int32)
        own[embedding] = Rows(looked_up, grads[embedding][number][looked_up])
        results.append((loss, own))
    return results
