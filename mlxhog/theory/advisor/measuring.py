"""A profile of a model on this machine: three short runs, and some gradients."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mlxhog.arena.child import Child, Lane
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig
from mlxhog.config.fine_tuning import WITHOUT_ENDS
from mlxhog.config.options import options
from mlxhog.config.quantities import Interval
from mlxhog.errors import ConfigError, WorkerFailed
from mlxhog.report.metrics import Progress, Result
from mlxhog.theory.advisor import AdviseConfig
from mlxhog.theory.advisor.profile import Profile
from mlxhog.theory.analysis import AnalyzeConfig
from mlxhog.theory.analysis.advice import ADAPTIVE
from mlxhog.theory.analysis.analyze import plan_of, subject_of, tickets, workers_of
from mlxhog.theory.analysis.conflicts import BlockConflicts, call_child, measure, most_samples
from mlxhog.theory.analysis.sampling import Subject, Ticket, source
from mlxhog.theory.analysis.target import Target
from mlxhog.theory.simulator.workers import Worker, worker_of
from mlxhog.training import trainer

Tell = Callable[[str, str], None]

PLAIN: Mapping[str, Any] = {
    **{
        one.name: one.default
        for one in options(TrainConfig).values()
        if one.group in ("strategy", "asynchrony", "sparse", "local methods")
        and one.name not in ("write", "gpu_write", "sampled_head")
    },
    "max_workers": None,
    "steps": None,
    "tokens": None,
    "resume": None,
    **WITHOUT_ENDS,
}
"""Options of one strategy that others refuse, and budgets: what short runs do without."""


@dataclass(frozen=True)
class ShortRun:
    """A run of some seconds, and what it took.

    Attributes:
        result: of the run.
        workers: what a step cost each.
        wait_s: seconds that a step of each waited for others.
        rounds_per_s: steps of the run per second of training.
    """

    result: Result
    workers: list[Worker]
    wait_s: list[float]
    rounds_per_s: float


def run_shortly(
    config: TrainConfig, *, seconds: float, tell: Callable[[str], None], **options: Any
) -> ShortRun:
    """Train for some seconds in a folder that is removed, and take the times of the steps.

    Raises:
        MlxhogError: as `mlxhog.training.trainer.train`.
        WorkerFailed: no step was finished in that time.
    """
    never = Interval()
    with tempfile.TemporaryDirectory(prefix="mlxhog-advise-") as folder:
        settings = replace(
            config,
            **{**PLAIN, **options},
            time=seconds,
            eval_every=never,
            sample_every=never,
            save_every=never,
            eval_tokens=1,
            out=folder,
            name="short",
        )

        def show(progress: Progress) -> None:
            tell(f"{progress.step} steps")

        result = trainer.train(settings, observer=show)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        times = Run(Path(result.run)).read_times()
    if len(times) < len(result.workers) or not result.steps:
        raise WorkerFailed(
            f"not every worker finished a step within {seconds:g} s; give the short runs longer, "
            "as in --measure 30"
        )
    return ShortRun(
        result=result,
        workers=[worker_of(one) for one in times],
        wait_s=[float(one["wait_s"]) for one in times],
        rounds_per_s=result.steps / result.seconds,
    )


def measured_profile(target: Target, how: AdviseConfig, tell: Tell) -> Profile:
    """Measure times, a round's cost, conflict and noise.

    Args:
        target: the model and its training.
        how: how long, and what is known besides.
        tell: told (part, step) before each step.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: bad input, before anything is started.
        EnvironmentLacks: a backend or memory is missing.
        WorkerFailed, Diverged: it cannot be measured.
    """
    workers = workers_of(target)
    if len(workers) < 2:
        raise ConfigError(
            f"--workers {target.config.workers} is one worker, which every strategy trains alike; "
            "advise on two or more, as in --workers 2"
        )
    plan = plan_of(target, AnalyzeConfig())
    subject = subject_of(target, plan)

    def short(what: str, **more: Any) -> ShortRun:
        tell(what, "starting")
        return run_shortly(
            target.config, seconds=how.measure, tell=lambda step: tell(what, step), **more
        )

    together = short(f"{len(workers)} workers, lock-free", strategy="hogwild")
    one = workers[0].backend
    alone = short("one worker", strategy="serial", workers=one, threads=workers[0].threads)
    rounds = short(f"{len(workers)} workers, in rounds", strategy="sync")
    p_conf, density, noise = _gradients(target, subject, how, tell)
    return Profile(
        workers=together.workers,
        alone=alone.workers[0],
        sync_s=_round_s(rounds),
        p_conf=p_conf,
        density=density,
        noise_scale=noise,
        batch=subject.batch_size,
        backend=one,
        adaptive=plan_optimizer(target) in ADAPTIVE,
        reproducible=how.reproducible,
        heterogeneity=how.heterogeneity or 0.0,
        link_gbit_s=how.link,
        seed=target.config.seed,
    )


def plan_optimizer(target: Target) -> str:
    """The optimizer that a run would have: an adaptive one where that is left open."""
    return "muon" if target.config.optimizer == "auto" else target.config.optimizer


def _round_s(rounds: ShortRun) -> float:
    """T_s: what a round takes beyond its slowest gradient."""
    rng = np.random.default_rng(0)
    times = [worker.compute.successive(rng) for worker in rounds.workers]
    slowest = fmean(max(next(one) for one in times) for _ in range(2000))
    return max(0.0, 1 / rounds.rounds_per_s - slowest)


def _gradients(
    target: Target, subject: Subject, how: AdviseConfig, tell: Tell
) -> tuple[float, float, float | None]:
    """Conflict and density, weighted by parameters, and the noise scale."""
    batches = subject.batches()
    count = min(how.samples, most_samples(subject))
    drawn = tickets(batches.n_tickets, count, target.config.seed)
    with Child() as child:
        tell("gradients", f"starting {subject.backend}")
        measured = measure(child, subject, drawn, lambda step: tell("gradients", step))
        tell("gradients", "their noise")
        noise: float | None = call_child(child, noise_scale, subject, drawn)
    return (*weighted(measured.blocks), noise)


def weighted(blocks: Sequence[BlockConflicts]) -> tuple[float, float]:
    """Probability of conflict, and share of the elements touched, weighted by parameters."""
    total = sum(one.block.parameters for one in blocks)
    p_conf = sum(one.block.parameters * one.elements.p_conf.value for one in blocks) / total
    touched = sum(one.elements.mean_groups for one in blocks) / total
    return min(1.0, p_conf), min(1.0, touched)


def noise_scale(lane: Lane, subject: Subject, drawn: Sequence[Ticket]) -> float | None:
    """Sequences in a batch at which noise and gradient are equally long: tr(Sigma) / |G|^2.

    Of n gradients of B sequences each, the mean of their squares is |G|^2 + tr(Sigma) / B and the
    square of their mean |G|^2 + tr(Sigma) / (n B); None where what is left for |G|^2 is no length.

    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1.
    """
    ours, n = source(lane, subject), len(drawn)
    total, squares = np.zeros(ours.flat.size, np.float64), 0.0
    for ticket in drawn:
        ours.gradient(ticket)
        grad = ours.flat.astype(np.float64)
        total += grad
        squares += float(grad @ grad) / n
    of_mean = float(total @ total) / n**2
    noise = (squares - of_mean) / (1 - 1 / n)  # tr(Sigma) / B
    signal = squares - noise
    return subject.batch_size * noise / signal if signal > 0 else None
