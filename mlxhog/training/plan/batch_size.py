"""The choice of a batch size by measured throughput (`--batch-size auto`).

A device computes more tokens per second with a larger batch until it is busy; a larger one then
only makes a step longer. So before training all workers of the run compute gradients at the
same time, each in a process of its own, with batches of 1, 2, 4, ... sequences of the run's text.
The chosen batch is the first whose double gains less than `MIN_RISE` of its tokens per second, or
the largest that memory, text and time allow. Where memory ends it, `--recompute auto` also
tries recomputed blocks. Times are of gradients alone: the optimizer's time does not depend on the
batch, and the run reports its share. A resumed run keeps its batch.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlxhog.arena.child import START_S, Child, Failed, Lane
from mlxhog.backends.backend import Backend
from mlxhog.backends.gpu_share import max_sequences
from mlxhog.base.quantities import format_share
from mlxhog.checkpoint.run import list_runs
from mlxhog.data.batch import Batch, joined
from mlxhog.display.views import StatusLine
from mlxhog.errors import EnvironmentLacks, RunError
from mlxhog.models.ops.operators import MAX_SUM_TERMS
from mlxhog.training.plan.job import Job, start_backend
from mlxhog.training.plan.memory import WORKER_BASE_BYTES, own_gpu_bytes
from mlxhog.training.plan.values import BatchChoice, BatchSpeed, Plan, sequences_text

if TYPE_CHECKING:
    from mlxhog.training.plan.values import TextPlan

MIN_RISE: Final = 0.05
"""A doubling that gains less than this is not worth a step that takes twice as long."""
MAX_SEQUENCES = 1024  # no larger batch is tried
MEASURE_S = 20.0  # of gradients, at most, without a budget of time
SHARE = 0.1  # largest part of a budget of time that the measurement may take
ENOUGH_S = 1.0  # of gradients of one batch; four times as long if fewer than `ENOUGH` are done
ENOUGH, MIN_GRADIENTS = 8, 2  # gradients that suffice, and that every worker has to measure
MIN_UPDATES = 8  # in an epoch, with a batch that is proposed
FULL = "more do not fit in memory (--memory-limit)", "more do not fit in the memory of the GPU"
NEAR = 4.0  # tokens in a step of two runs whose times compare
PATIENCE_S = 600.0  # limit of one measurement of a batch, for a worker that hangs


def limit_of(plan: TextPlan) -> tuple[int, str]:
    """Return the largest batch size that memory and text allow, and what limits it, as a clause."""
    config, workers, memory = plan.config, len(plan.workers), plan.memory
    shared_bytes = plan.arena_bytes + memory.base_bytes
    ram_bytes = (memory.limit_bytes - shared_bytes) / workers - WORKER_BASE_BYTES
    of_backends = min(max_sequences(worker.backend, config.seq_len) for worker in plan.workers)
    limits = [
        (MAX_SEQUENCES, f"no more than {MAX_SEQUENCES} are tried"),
        (memory.max_sequences(ram_bytes), FULL[0]),
        (of_backends, f"torch:mps sums at most {MAX_SUM_TERMS:,} tokens right in a gradient"),
    ]
    if config.follow is None:
        text = plan.data.train.n_sequences(config.seq_len)
        each = text // (workers * config.grad_accumulation)
        why = (
            f"the {sequences_text(text)} of the text are at most {each} for each gradient of a step"
        )
        limits.append((each, why))
    if (own_bytes := own_gpu_bytes(plan.gpu_share, plan.workers)) is not None:
        most = memory.max_sequences(own_bytes)
        limits.append((most, FULL[1]))
    most, why = min(limits)
    return max(1, most), why  # the plan has one sequence


def gains(recomputing: BatchChoice, none: BatchChoice) -> bool:
    """Whether recomputed blocks make gradients faster, by the larger batch that then fits."""
    rates = [max(speed.tokens_per_s for speed in one.speeds) for one in (recomputing, none)]
    return rates[0] > (1.0 + MIN_RISE) * rates[1]


def measured(plan: TextPlan, *, progress: bool) -> BatchChoice:
    """Choose the batch of a run, planned with one sequence.

    Each worker has a process, which computes nothing but gradients.
    """
    limit_s = min(MEASURE_S, SHARE * (plan.config.time or math.inf))
    with ExitStack() as stack:
        line = stack.enter_context(StatusLine(sys.stderr, quiet=not progress))
        children = [
            stack.enter_context(Child(threads=worker.threads, promises=False))
            for worker in plan.workers
        ]

        def measure(sequences: int, rest_s: float) -> list[tuple[int, list[float]]]:
            line.show(f"measuring tokens/s with {sequences_text(sequences)} in a batch")
            for function in (warm_up, gradient_times):  # all begin at the same time
                for rank, child in enumerate(children):
                    child.start(function, plan, rank, sequences, rest_s)
                answers = [child.await_result(START_S + PATIENCE_S) for child in children]
            return answers

        return choose(*limit_of(plan), limit_s, measure)


def choose(
    most: int,
    limit: str,
    limit_s: float,
    measure: Callable[[int, float], Sequence[tuple[int, list[float]]]],
) -> BatchChoice:
    """Choose a batch by the speeds of growing ones, at `most` so large, for a reason.

    `measure` takes a batch and the rest of the time, and returns the tokens of each worker's
    gradient, and the times of several; it raises `Failed` where a worker fails.
    """
    speeds, sequences, rest_s = list[BatchSpeed](), 1, limit_s
    while sequences <= most:
        batch = sequences_text(sequences)
        if speeds and (1 + MIN_GRADIENTS) * 2 * speeds[-1].gradient_s > rest_s:
            limit = f"gradients of {batch} would take the measurement over {limit_s:.3g} s"
            break
        try:
            of_workers = measure(sequences, rest_s)
        except Failed as failure:
            if speeds:
                limit = f"a worker fails with {batch} ({failure})"
                break
            raise EnvironmentLacks(
                f"batch_size=auto: a worker cannot compute {batch}: {failure}; give --batch-size a "
                "number, or see mlxhog doctor"
            ) from failure
        rest_s -= max(sum(times) + fmean(times) for _, times in of_workers)
        rate = sum(tokens / faster_half(times) for tokens, times in of_workers)
        rise = rate / speeds[-1].tokens_per_s - 1.0 if speeds else 1.0
        speeds.append(BatchSpeed(sequences, rate, max(fmean(times) for _, times in of_workers)))
        if rise < MIN_RISE:
            limit = (
                f"with {batch} tokens/s change by {format_share(rise)}, less than "
                f"{format_share(MIN_RISE)}"
            )
            return BatchChoice(sequences // 2, limit, tuple(speeds))
        sequences *= 2
    return BatchChoice(speeds[-1].sequences, limit, tuple(speeds))


def alike(plan: TextPlan) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and result of the runs with as many parameters and such workers, newest first."""
    backends = sorted(worker.backend for worker in plan.workers)
    for one in reversed(list_runs(Path(plan.config.runs_dir))):
        with suppress(RunError):
            status = one.read_status()
            result = status.get("result") or {}
            used = sorted(worker["backend"] for worker in result.get("workers", ()))
            if status.get("parameters") == plan.parameters and used == backends:
                yield one.name, result


def proposed(plan: TextPlan) -> str | None:
    """Propose a larger batch by an earlier run of about as many tokens in a step; None for none."""
    rows = plan.data.train.rows(plan.config.seq_len)
    if rows is None or plan.resumption is not None:
        return None
    now = plan.config.sequences_per_ticket * float(rows.length.mean())
    for name, result in alike(plan):
        if now / NEAR <= result.get("tokens", 0) / max(result.get("steps", 0), 1) <= NEAR * now:
            text = advice(plan, result)
            return text and f"{text}, by run {name}"
    return None


def advice(plan: TextPlan, result: Mapping[str, Any]) -> str | None:
    """Propose a larger batch where at least half of a step on short examples is the optimizer's.

    The result is of a run `alike`. An update takes as long with any batch, a gradient grows with
    its tokens.
    """
    rows = plan.data.train.rows(plan.config.seq_len)
    spent, steps = result.get("shares", {}).get("optimizer", 0.0), result.get("steps", 0)
    is_open = plan.resumption is None and plan.batch is None
    if rows is None or not is_open or not steps or not 0.0 < spent < 1.0:
        return None
    length, times = float(rows.length.mean()), plan.config.grad_accumulation
    # The sequences whose gradient takes as long as an update.
    equal = spent / (1.0 - spent) * result["tokens"] / steps / length / times
    most = len(rows.length) // (MIN_UPDATES * len(plan.workers) * times)
    now, better = plan.config.micro_batch, min(limit_of(plan)[0], most)
    better = min(better, 2 ** math.ceil(math.log2(2.0 * equal)))
    if now > equal or better <= now:
        return None
    shares = [format_share(equal / (equal + n)) for n in (now, better)]
    return (
        f"examples have {length:.0f} tokens on average: with --batch-size {now} the optimizer "
        f"takes about {shares[0]} of a step, with --batch-size {better} {shares[1]}"
    )


def times_of(backend: Backend, batch: Batch, enough: Callable[[list[float]], bool]) -> list[float]:
    """Seconds of gradients of a batch, until there are enough; the backend is warm."""
    times = list[float]()
    while not enough(times):
        began_s = time.perf_counter()
        backend.loss_and_grads(batch)
        times.append(time.perf_counter() - began_s)
    return times


def faster_half(times: Sequence[float]) -> float:
    """The mean of the faster half: other programs may delay some gradients."""
    return fmean(sorted(times)[: -(-len(times) // 2)])


def warm_up(lane: Lane, plan: Plan, rank: int, sequences: int, limit_s: float) -> None:
    """Start a worker's backend, bound to small random parameters, and compute one gradient.

    The values of parameters do not change the time.
    """
    if "backend" not in lane.store:
        job = Job(plan=plan, handle=None, slot=rank + 1, run_dir=Path(), budget=plan.budget)
        lane.store["backend"] = start_backend(job, None, job.kernels)
        noise = np.random.default_rng(0).normal(0.0, 0.02, 1 << 16).astype(np.float32)
        lane.store["backend"].copy_in(np.resize(noise, plan.layout.n_floats))
    # The first sequences of the text, and again from its beginning if it has fewer.
    source = plan.batches()
    rows = [source.at(0, k % source.n_tickets) for k in range(sequences)]
    lane.store["batch"] = joined(rows).part(0, sequences)
    lane.store["backend"].loss_and_grads(lane.store["batch"])


def gradient_times(
    lane: Lane, plan: Plan, rank: int, sequences: int, limit_s: float
) -> tuple[int, list[float]]:
    """After `warm_up`: tokens of a gradient of one worker, and the times of several."""

    def enough(times: list[float]) -> bool:
        needed_s = ENOUGH_S if len(times) >= ENOUGH else 4 * ENOUGH_S
        return sum(times) >= (min(limit_s, needed_s) if len(times) >= MIN_GRADIENTS else limit_s)

    batch = lane.store["batch"]
    return batch.n_tokens, times_of(lane.store["backend"], batch, enough)
