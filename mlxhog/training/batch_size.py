"""The choice of a batch by measured tokens per second (`--batch-size auto`).

A device computes more tokens per second with a larger batch until it is busy; a larger one then
only lets a step take longer. So before training all workers of the run compute gradients at the
same time, each in a process of its own, with batches of 1, 2, 4, ... sequences of the run's text.
The chosen batch B is the first for which

    tokens per second of 2 B  <  (1 + margin) tokens per second of B
    margin = max(LEAST_RISE, 2 standard errors of the ratio)

or the last one that memory, text and time allow. Times are of gradients alone: the optimizer's time
does not depend on the batch, and the run reports its share.

The speeds stay in a file of this machine (`mlxhog.base.batch_speeds`), so a later run of the
same model, context, workers and versions measures at most larger batches. Speeds of a busy machine
are used, but not kept. A resumed run keeps its batch.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlxhog import backends
from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends.backend import Backend
from mlxhog.backends.gpu_share import most_sequences
from mlxhog.base import batch_speeds, float32, machine, plain_json
from mlxhog.base.batch_speeds import BatchSpeed
from mlxhog.base.load import LoadWatch
from mlxhog.base.quantities import format_count, format_share, parse_count
from mlxhog.checkpoint import checkpoint
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import read_stored
from mlxhog.data.batch import Batch, joined
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.ops.operators import LONGEST_SUM
from mlxhog.report.views import StatusLine
from mlxhog.training.job import Setup
from mlxhog.training.memory import WORKER_BASE_BYTES, own_gpu_bytes

if TYPE_CHECKING:
    from mlxhog.training.plan import Plan

LEAST_RISE: Final = 0.05
"""A doubling that gains less than this is not worth a step that takes twice as long."""

MOST: Final = 1024
"""No larger batch is tried."""

MEASURE_S: Final = 20.0
"""Seconds of gradients, at most, without a budget of time."""

SHARE: Final = 0.1
"""Largest part of a budget of time that the measurement may take."""

ENOUGH_S: Final = 1.0
"""Seconds of gradients of one batch; 4 if fewer than `ENOUGH` are done by then."""

ENOUGH: Final = 8
LEAST: Final = 2
"""Gradients that every worker has to measure."""

PATIENCE_S: Final = 600.0
"""Limit of one measurement of a batch, for a worker that hangs."""

Measure = Callable[[int, Sequence[BatchSpeed]], BatchSpeed | str]
"""Returns the speed of a batch after those of smaller ones, or why it cannot measure it."""


@dataclass(frozen=True, kw_only=True)
class BatchChoice:
    """The chosen batch and the reason.

    Attributes:
        sequences: of the batch.
        why: no larger one is taken.
        speeds: of all measured batches, by growing batch.
        measured: number of them that this call has measured; the others were known.
        unkept: why the speeds are not kept for later runs; "" if they are.
    """

    sequences: int
    why: str
    speeds: tuple[BatchSpeed, ...] = ()
    measured: int = 0
    unkept: str = ""

    def __str__(self) -> str:
        """One line for the user."""
        line = f"batch_size auto: {_sequences(self.sequences)}, because {self.why}"
        if self.speeds:
            each = (f"{format_count(one.tokens_per_s)} with {one.sequences}" for one in self.speeds)
            source = "measured now" if self.measured else "measured by an earlier run"
            line += f"; tokens/s of all workers: {', '.join(each)} ({source})"
        return f"{line}; {self.unkept}" if self.unkept else line

    def to_json(self) -> dict[str, Any]:
        """The choice for run.json."""
        speeds = [asdict(one) for one in self.speeds]
        facts = {"sequences": self.sequences, "why": self.why, "measured": self.measured}
        return {**facts, "tokens_per_s": speeds}


def of_resumed(config: TrainConfig) -> BatchChoice:
    """The batch with which a resumed run began."""
    assert config.resume is not None
    run, _ = checkpoint.resumable(config.resume, Path(config.out))
    stored = read_stored(run.config_path) if run.config_path.is_file() else {}
    value, _ = stored.get("batch_size", (TrainConfig().micro_batch, ""))
    return BatchChoice(sequences=parse_count(value), why="the run began with it")


def measured(plan: Plan, *, progress: bool) -> BatchChoice:
    """Choose the batch of a run, planned with one sequence, and keep what was measured for it.

    Args:
        plan: of the run.
        progress: whether a line of a terminal shows what is measured.

    Raises:
        EnvironmentLacks: no batch fits, or a worker fails.
    """
    key, (most, why) = _key(plan), limit_of(plan)
    with ExitStack() as stack:
        watch, line = LoadWatch(), stack.enter_context(StatusLine(sys.stderr, quiet=not progress))
        measure = _measure(plan, stack, line.show)
        choice = choose(batch_speeds.load(key), most, why, measure)
        load = watch.look()
    if not choice.measured:
        return choice
    if load.busy:
        others = f"{load.others:.1f} of {load.processors} processors"
        return replace(choice, unkept=f"not kept, since other programs used {others}")
    try:
        batch_speeds.save(key, choice.speeds)
    except EnvironmentLacks as error:
        return replace(choice, unkept=str(error))
    return choice


def limit_of(plan: Plan) -> tuple[int, str]:
    """The largest batch that memory and text allow, and what limits it, as a clause.

    Raises:
        EnvironmentLacks: the GPU's driver does not say how much memory it has.
    """
    config, workers, gradient = plan.config, len(plan.workers), plan.gradient_memory
    ram_bytes = (plan.memory.limit_bytes - plan.arena_bytes) / workers - WORKER_BASE_BYTES
    limits = [
        (MOST, f"no more than {MOST} are tried"),
        (gradient.most_sequences(ram_bytes), "more do not fit in memory (--memory-limit)"),
    ]
    if config.follow is None:
        text = plan.epoch_tokens // config.seq_len
        each = text // (workers * config.grad_accumulation)
        why = f"the {_sequences(text)} of the text are at most {each} for each gradient of a step"
        limits.append((each, why))
    most = min(most_sequences(worker.backend, config.seq_len) for worker in plan.workers)
    limits.append((most, f"torch:mps sums at most {LONGEST_SUM:,} tokens right in a gradient"))
    own_bytes = own_gpu_bytes(plan.gpu_share, plan.workers)
    if own_bytes is not None:
        most = gradient.most_sequences(own_bytes)
        limits.append((most, "more do not fit in the memory of the GPU"))
    most, why = min(limits, key=lambda limit: limit[0])
    return max(1, most), why  # the plan has one sequence


def choose(known: Sequence[BatchSpeed], most: int, limit: str, measure: Measure) -> BatchChoice:
    """Choose a batch by the speeds of growing ones.

    Args:
        known: speeds of 1, 2, 4, ... sequences that need no measurement.
        most: the largest batch that is possible.
        limit: the reason.
        measure: returns the speed of a batch behind these, or why it cannot measure it.
    """
    by_size, speeds, measured = {one.sequences: one for one in known}, list[BatchSpeed](), 0
    sequences, why = 1, ""
    while not why:
        if sequences > most:
            why = limit
        elif sequences in by_size:
            speeds.append(by_size[sequences])
        elif isinstance(speed := measure(sequences, speeds), str):
            why = speed
        else:
            speeds.append(speed)
            measured += 1
        chosen, sequences = speeds[-1], 2 * speeds[-1].sequences
        if len(speeds) > 1 and not why:
            before, twice = speeds[-2:]
            rise = twice.tokens_per_s / before.tokens_per_s - 1.0
            margin = max(LEAST_RISE, 2.0 * math.hypot(before.error, twice.error))
            if rise < margin:
                chosen = before
                why = (
                    f"with {_sequences(twice.sequences)} tokens/s change by {format_share(rise)}, "
                    f"less than the margin of {format_share(margin)}"
                )
    return BatchChoice(sequences=chosen.sequences, why=why, speeds=tuple(speeds), measured=measured)


def _sequences(n: int) -> str:
    return f"{n} sequence{'s' * (n != 1)}"


# -- the measurement -------------------------------------------------------------------------------


def _key(plan: Plan) -> batch_speeds.Key:
    """What the speeds depend on, beside the machine and the versions in use."""
    config, workers = plan.config, zip(plan.workers, plan.kernels, strict=True)
    text = TokenFile.open(plan.data.train)
    return {
        "model": hashlib.sha256(plain_json.dumps(plan.model.to_dict())).hexdigest(),
        "seq_len": config.seq_len,
        "context": config.context,
        "lengths": None if text.prompts is None else text.digest,  # other sequences are full
        "sampled_head": config.sampled_head,
        "compute_dtype": config.compute_dtype,
        "cpu_blas": config.cpu_blas,
        "workers": [[worker.backend, worker.threads, kernels] for worker, kernels in workers],
        "tf32": float32.multiplies_as_tf32(
            [worker.backend for worker in plan.workers],
            machine.here(),
            promised=config.determinism != "none",
        ),
    }


def _measure(plan: Plan, stack: ExitStack, show: Callable[[str], None]) -> Measure:
    """Measures with one process for each worker, which computes nothing but gradients.

    The processes start with the first measurement and end with `stack`; `show` gets what is
    measured.
    """
    setup, children, budget_s = plan.for_workers(), list[Child](), plan.config.time
    limit_s = rest_s = MEASURE_S if budget_s is None else min(MEASURE_S, SHARE * budget_s)

    def together(function: Callable[..., Any], *args: Any) -> list[Any]:
        """What a function returns in each process; they begin at the same time."""
        for rank, child in enumerate(children):
            child.start(0, function, setup, rank, *args)
        return [child.take(0, START_S + PATIENCE_S) for child in children]

    def measure(sequences: int, before: Sequence[BatchSpeed]) -> BatchSpeed | str:
        nonlocal rest_s
        expected_s = (1 + LEAST) * 2 * before[-1].gradient_s if before else 0.0
        if expected_s > rest_s:
            return (
                f"gradients of {_sequences(sequences)} would take the measurement over "
                f"{limit_s:.3g} s"
            )
        show(f"measuring tokens/s with {_sequences(sequences)} in a batch")
        promises = plan.config.determinism != "none"
        while len(children) < len(plan.workers):
            children.append(stack.enter_context(Child(promises=promises)))
        try:
            together(warm_up, sequences)
            times_of = together(gradient_times, sequences, rest_s)
        except Failed as failure:
            if before:
                return f"a worker fails with {_sequences(sequences)} ({failure})"
            raise EnvironmentLacks(
                f"batch_size=auto: a worker cannot compute {_sequences(sequences)}: {failure}; "
                "give --batch-size a number, or see mlxhog doctor"
            ) from failure
        rest_s -= max(sum(times) + fmean(times) for _, times in times_of)
        return speed_of(sequences, times_of)

    return measure


def speed_of(sequences: int, measured: Sequence[tuple[int, list[float]]]) -> BatchSpeed:
    """The speed of all workers from each one's tokens per gradient and times."""
    rates, errors = [], []
    for tokens, times in measured:
        # Other programs may delay some: the faster half counts.
        fast = sorted(times)[: -(-len(times) // 2)]
        rates.append(tokens / fmean(fast))
        errors.append(rates[-1] * pstdev(fast) / fmean(fast) / math.sqrt(len(fast)))
    return BatchSpeed(
        sequences=sequences,
        tokens_per_s=sum(rates),
        error=math.hypot(*errors) / sum(rates),
        gradient_s=max(fmean(times) for _, times in measured),
    )


def warm_up(lane: Lane, setup: Setup, rank: int, sequences: int) -> None:
    """In a child: start a worker's backend, and let it compute one gradient of this shape."""
    backend = lane.keep("backend", partial(_backend, setup, rank))
    backend.loss_and_grads(_batch(setup, sequences))


def gradient_times(
    lane: Lane, setup: Setup, rank: int, sequences: int, limit_s: float
) -> tuple[int, list[float]]:
    """In a child, after `warm_up`: tokens of a gradient of one worker, and the times of several."""
    backend: Backend = lane.store["backend"]
    batch, times = _batch(setup, sequences), list[float]()
    while True:
        needed_s = ENOUGH_S if len(times) >= ENOUGH else 4 * ENOUGH_S
        if sum(times) >= (min(limit_s, needed_s) if len(times) >= LEAST else limit_s):
            return batch.n_tokens, times
        began_s = time.perf_counter()
        backend.loss_and_grads(batch)
        times.append(time.perf_counter() - began_s)


def _backend(setup: Setup, rank: int) -> Backend:
    """A worker's backend, bound to small random parameters: their values do not change the time."""
    spec, config, layout = setup.workers[rank], setup.config, setup.layout
    backend = backends.create(
        spec.backend,
        threads=spec.threads,
        kernels=setup.kernels[rank],
        cpu_blas=config.cpu_blas,
        share=setup.gpu_share,
        compute_dtype=config.compute_dtype,
    )
    if setup.kernels[rank] == "metal" and config.kernels != "metal":
        backend.check_kernels()  # as the worker does
    tables = {name: np.zeros(slot.shape, np.float32) for name, slot in layout.tables.items()}
    backend.bind(setup.model, layout.slots, layout.n_floats, None, setup.sampled, tables)
    noise = np.random.default_rng(0).normal(0.0, 0.02, 1 << 16).astype(np.float32)
    backend.inbox[:] = np.resize(noise, backend.inbox.shape)
    backend.refresh()
    return backend


def _batch(setup: Setup, sequences: int) -> Batch:
    """The first sequences of the run's text; from its beginning again if it has fewer."""
    source = setup.batches()
    rows = [source.at(0, k % source.n_tickets) for k in range(sequences)]
    return joined(rows).part(0, sequences)
