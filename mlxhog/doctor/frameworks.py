"""Checks of the frameworks: a gradient on every backend, shared memory between them, a short run.

A framework is only started in a process of its own, since it can end its process.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

import numpy as np

from mlxhog import arena, backends
from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends.backend import Backend, Grads
from mlxhog.config.config import TrainConfig
from mlxhog.data.batch import Batch
from mlxhog.doctor.checks import AGAIN, Check, CheckResult, absent, check, failed
from mlxhog.errors import MlxhogError
from mlxhog.machine.load import Load, LoadWatch
from mlxhog.machine.machine import Machine
from mlxhog.machine.verdicts import GPU_ENGINES
from mlxhog.machine.workers import BACKENDS, missing
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.registry import load_architecture
from mlxhog.optim.gradients import Rows
from mlxhog.report.metrics import Progress
from mlxhog.report.metrics import Result as RunResult
from mlxhog.training import batch_size
from mlxhog.training.api import train
from mlxhog.training.plan import make_plan

MODEL: Final = "tiny"
BATCH, LENGTH = 2, 256  # the defaults of `mlxhog train`
PATIENCE_S: Final = 60.0  # for the gradients of one backend
_EXPECTED = "starts, and computes a finite gradient of the model tiny"


@dataclass
class Speeds:
    """Tokens per second of one worker with one thread, by backend.

    Attributes:
        usual: with native kernels on a CPU, with the framework's own operations on a GPU.
        metal: of GPUs, with our Metal kernels.
    """

    usual: dict[str, float] = field(default_factory=dict)
    metal: dict[str, float] = field(default_factory=dict)


def check_backends(
    machine: Machine, gradients: int, *, agreed: Collection[str] = ()
) -> tuple[list[Check], Speeds]:
    """Start each backend in a process of its own.

    Args:
        machine: this one.
        gradients: number that each computes, with one thread.
        agreed: Metal engines on which every kernel agreed with its reference; their GPU workers are
            then also measured with the Metal kernels.

    Returns:
        A check per backend and form, and the speeds of those that work.
    """
    checks: list[Check] = []
    speeds = Speeds()
    for name in BACKENDS:
        lack = missing(name, machine)
        if lack is not None:
            checks.append(absent(f"backend {name}", lack, _EXPECTED))
            continue
        consequence = f"--workers {name} cannot train here"
        usual = "reference" if name in GPU_ENGINES else "auto"
        result = _measure(f"backend {name}", name, usual, gradients, CheckResult.FAIL, consequence)
        checks.append(result.check)
        if result.tokens_per_s is None:
            continue
        speeds.usual[name] = result.tokens_per_s
        if GPU_ENGINES.get(name) in agreed:
            consequence = f"--kernels auto is reference on {name}, and metal fails"
            title = f"backend {name}, Metal kernels"
            result = _measure(title, name, "metal", gradients, CheckResult.WARN, consequence)
            checks.append(result.check)
            if result.tokens_per_s is not None:
                speeds.metal[name] = result.tokens_per_s
    return checks, speeds


class _Measurement(NamedTuple):
    check: Check
    tokens_per_s: float | None


def _measure(
    title: str, name: str, kernels: str, gradients: int, otherwise: CheckResult, consequence: str
) -> _Measurement:
    watch = LoadWatch()
    try:
        with Child(promises=False) as child:  # as fast as in training
            speed, loss = child.call(
                START_S + PATIENCE_S, measure_gradients, name, kernels, gradients
            )
    except Failed as failure:
        untrained = failed(
            title, failure, _EXPECTED, consequence, watch.look(), otherwise=otherwise
        )
        return _Measurement(untrained, None)
    observed = f"loss {loss:.3f}, {speed:,.0f} tokens/s with one thread"
    if watch.look().busy:
        observed += ", or more when other programs are quiet"
    return _Measurement(Check(title, CheckResult.PASS, observed, _EXPECTED), speed)


def measure_gradients(lane: Lane, name: str, kernels: str, gradients: int) -> tuple[float, float]:
    """In a child: return tokens per second and the first loss.

    Only the faster half of the gradients counts, since other programs may delay the rest.

    Raises:
        ValueError: the gradient is not finite, or zero.
    """
    backend, batch = prepared(name, kernels)
    loss, grads = backend.loss_and_grads(batch)
    _check_gradients(loss, grads)
    times = []
    for _ in range(gradients):
        begin = time.perf_counter()
        backend.loss_and_grads(batch)
        times.append(time.perf_counter() - begin)
    return batch.x.size / fmean(sorted(times)[: -(-gradients // 2)]), loss


def prepared(name: str, kernels: str) -> tuple[Backend, Batch]:
    """A backend with the initial model, and a batch for it."""
    backend = backends.create(name, threads=1, kernels=kernels, cpu_blas="auto")
    model = load_architecture(MODEL)
    layout = arena.plan(param_spec(model), max_workers=1, n_tickets=1)
    backend.bind(model, layout.slots, layout.n_floats, None)
    for parameter, value in init_params(model, 0).items():
        slot = layout.slots[parameter]
        backend.inbox[slot.offset : slot.offset + slot.size] = value.reshape(-1)
    backend.refresh()
    tokens = np.random.default_rng(0).integers(0, 256, (BATCH, LENGTH + 1), dtype=np.int32)
    x, y = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    return backend, Batch(x, y, x.size)


def _check_gradients(loss: float, grads: Grads) -> None:
    if not np.isfinite(loss):
        raise ValueError(f"the loss is {loss}")
    for name, grad in grads.items():
        values: Any = grad.values if isinstance(grad, Rows) else grad
        if not np.isfinite(values).all() or not values.any():
            raise ValueError(f"the gradient of {name} is not finite, or all zero")


# -- sharing host memory with the frameworks -------------------------------------------------------

IMPORT_BYTES: Final = 100 << 20
QUICK_IMPORT_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class Probe:
    """A function that a child calls.

    Attributes:
        what: name of the check if the child ends.
        target: function below `mlxhog.doctor`, as `module:function`, which returns checks.
        args: of the function.
        worst: result of the check if the child ends.
        consequence: of that.
    """

    what: str
    target: str
    args: tuple[int, ...] = ()
    worst: CheckResult = CheckResult.FAIL
    consequence: str = "the sharing of this memory is unknown: use the defaults"


def check_imports(machine: Machine, *, quick: bool) -> list[Check]:
    """Check how the installed frameworks share memory."""
    probes: list[Probe] = []
    nbytes = QUICK_IMPORT_BYTES if quick else IMPORT_BYTES
    if "mlx" in machine.frameworks:
        probes.append(Probe("memory of MLX", "probes_mlx:examine", (nbytes,)))
    if "torch" in machine.frameworks:
        probes.append(Probe("memory of torch", "probes_torch:examine"))
    if {"mlx", "torch"} <= machine.frameworks:
        probes.append(Probe("memory of MLX and torch", "probes_torch:examine_with_mlx"))
    if "mlx" in machine.frameworks:  # last, since Metal may end the process
        probes.append(
            Probe(
                "import of an unaligned address",
                "probes_mlx:unaligned",
                (nbytes,),
                CheckResult.WARN,
                "none: mlxhog refuses such an address itself",
            )
        )
    return _run_probes(probes)


def _run_probes(probes: Iterable[Probe]) -> list[Check]:
    """Run each probe in a child, since only children import frameworks; a dead one is replaced."""
    checks: list[Check] = []
    child: Child | None = None
    try:
        for probe in probes:
            child, watch = child or Child(), LoadWatch()
            try:
                checks += child.call(
                    START_S, call_by_name, f"mlxhog.doctor.{probe.target}", *probe.args
                )
            except Failed as failure:
                checks.append(
                    failed(
                        probe.what,
                        failure,
                        "the checks run to their end",
                        probe.consequence,
                        watch.look(),
                        otherwise=probe.worst,
                    )
                )
                child.close()
                child = None
    finally:
        if child is not None:
            child.close()
    return checks


def call_by_name(lane: Lane, target: str, *args: Any) -> list[Check]:
    """In a child: call `module:function`."""
    module, _, function = target.partition(":")
    checks: list[Check] = getattr(importlib.import_module(module), function)(lane, *args)
    return checks


# -- batches ---------------------------------------------------------------------------------------

BATCH_TITLE: Final = "--batch-size auto"


def check_batch() -> tuple[Check, dict[str, Any] | None]:
    """Measure the batch of the default run, and keep its speeds for `--batch-size auto`.

    Returns:
        A check, and the choice as JSON; None if runs will measure it themselves.
    """
    expected = "all workers compute gradients of growing batches, and their speeds are kept"
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as folder:
        config = TrainConfig(batch_size=None, out=folder)
        try:
            _, choice = batch_size.planned(config, make_plan, again=True)
        except MlxhogError as error:
            consequence = f"{BATCH_TITLE} fails; give a number"
            return Check(BATCH_TITLE, CheckResult.WARN, str(error), expected, consequence), None
    assert choice is not None
    observed = f"{choice.sequences} for model {config.model}: {choice.why}"
    if choice.unkept:
        return Check(BATCH_TITLE, CheckResult.UNCLEAR, observed, expected, choice.unkept), None
    return Check(BATCH_TITLE, CheckResult.PASS, observed, expected), choice.to_json()


# -- a short run -----------------------------------------------------------------------------------

SLOWER: Final = 0.2
_FEWEST_STEPS: Final = 20  # in the first half; the time of fewer means little
_STEP_TIME: Final = "step time"
_SAME_PACE: Final = f"second half of a run less than {SLOWER:.0%} slower than the first"


class PaceSample(NamedTuple):
    """Time and steps of a run; all its workers have run since the first sample."""

    elapsed_s: float
    steps: int


def judge_pace(samples: Sequence[PaceSample], load: Load) -> Check:
    """Compare the time per step in the first half of a run with that in the second.

    Args:
        samples: in the order of time.
        load: of the machine meanwhile.
    """
    if len(samples) < 3:
        return absent(_STEP_TIME, f"{len(samples)} samples are too few", _SAME_PACE)
    first, last = samples[0], samples[-1]
    half = (first.elapsed_s + last.elapsed_s) / 2
    middle = min(samples[1:-1], key=lambda sample: abs(sample.elapsed_s - half))
    steps = middle.steps - first.steps
    if steps < _FEWEST_STEPS:
        return absent(_STEP_TIME, f"{steps} steps are too few", _SAME_PACE)
    early = (middle.elapsed_s - first.elapsed_s) / steps
    late = (last.elapsed_s - middle.elapsed_s) / max(last.steps - middle.steps, 1)
    observed = f"{early * 1e3:.1f} ms, then {late * 1e3:.1f} ms ({late / early - 1:+.0%})"
    slower = late >= (1 + SLOWER) * early
    if slower and load.busy:
        return Check(_STEP_TIME, CheckResult.UNCLEAR, f"{load}: {observed}", _SAME_PACE, AGAIN)
    return check(
        _STEP_TIME,
        not slower,
        observed,
        _SAME_PACE,
        "the chip is hot: see `pmset -g therm` on a Mac; long runs will be slower",
        otherwise=CheckResult.WARN,
    )


STEPS: Final = 600  # some while the worker is replaced; the rest measure the time per step
FEWEST_STEPS: Final = 100  # with fewer the loss is not judged; a repeated text takes 20
MOST_S: Final = 60.0
LEARNT: Final = 1.0  # nats below a uniform guess; a repeated text is learnt at once
TEXT: Final = "Never wait: read, compute, add without a lock. " * 4000
_KILL_AT: Final = 10  # steps
_RUN: Final = "a run"


def check_training(steps: int = STEPS) -> list[Check]:
    """Train a small model on a repeated text.

    Args:
        steps: limit, beside that of `MOST_S`.

    Returns:
        A check of the run, and one of its time per step.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    guessing = math.log(load_architecture(MODEL).vocab_size)
    expected = f"a loss below {guessing - LEARNT:.1f} after {steps} steps; a killed worker replaced"
    watch, load_watch = WorkerKiller(), LoadWatch()
    with tempfile.TemporaryDirectory(prefix="mlxhog-doctor-") as folder:
        text = Path(folder) / "text.txt"
        text.write_text(TEXT)
        try:
            result = train(
                data=str(text), model=MODEL, tokenizer="bytes", seq_len=64, steps=steps,
                time=MOST_S, out=folder,
                strategy="hogwild", eval_every="off", sample_every="off", schedule="constant",
                observer=watch,
            )  # fmt: skip
        except MlxhogError as error:
            return [Check(_RUN, CheckResult.FAIL, str(error), expected, "no training here")]
    if result.status == "interrupted":
        raise KeyboardInterrupt
    load = load_watch.look()
    return [
        judge_run(result, watch.loss, guessing - LEARNT, expected, load),
        judge_pace(watch.samples, load),
    ]


class WorkerKiller:
    """An observer that kills a worker after `_KILL_AT` steps.

    Attributes:
        loss: the last one, infinite before the first.
        samples: of the run, from the replacement of the killed worker on.
    """

    def __init__(self) -> None:
        self.loss = math.inf
        self.samples: list[PaceSample] = []
        self._killed: int | None = None

    def __call__(self, progress: Progress) -> None:
        """Observe the run."""
        self.loss = self.loss if progress.loss is None else progress.loss
        if self._killed is not None:
            self._sample(progress)
        elif progress.step >= _KILL_AT and progress.workers[-1].pid > 0:  # 0: the seat is free
            self._killed = progress.workers[-1].pid
            os.kill(self._killed, signal.SIGKILL)

    def _sample(self, progress: Progress) -> None:
        """Add a sample, unless a worker is missing or training is over."""
        whole = all(w.state == "running" and w.pid != self._killed for w in progress.workers)
        if whole and (not self.samples or progress.elapsed_s > self.samples[-1].elapsed_s):
            self.samples.append(PaceSample(progress.elapsed_s, progress.step))


def judge_run(result: RunResult, loss: float, highest: float, expected: str, load: Load) -> Check:
    """Return the check of a finished run.

    Args:
        result: of the run.
        loss: the last one.
        highest: limit of the loss after `FEWEST_STEPS`.
        expected: text of the check.
        load: of the machine meanwhile.
    """
    workers = ",".join(worker.backend for worker in result.workers)
    observed = (
        f"{workers}: {result.steps} steps, {result.tokens_per_s:,.0f} tokens/s, loss {loss:.2f}, "
        f"{result.restarts} replaced"
    )
    good = result.status == "done" and loss < highest and result.restarts >= 1
    if not good and result.status == "done" and result.steps < FEWEST_STEPS:
        why = str(load) if load.busy else f"too few steps in {MOST_S:.0f} s"
        return Check(_RUN, CheckResult.UNCLEAR, f"{why}: {observed}", expected, AGAIN)
    return check(_RUN, good, observed, expected, "to see more: mlxhog train --time 1m")
