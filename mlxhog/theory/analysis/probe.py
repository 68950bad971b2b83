"""A short lock-free run, made to be looked at: its staleness, and what racy adds lose."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace

from mlxhog.config.config import TrainConfig
from mlxhog.config.quantities import Interval
from mlxhog.errors import WorkerFailed
from mlxhog.report.metrics import Progress
from mlxhog.theory.analysis.observed import Observed, mean_of, summaries
from mlxhog.training import trainer


def probe(
    config: TrainConfig,
    *,
    workers: str,
    seconds: float,
    tell: Callable[[str], None],
) -> Observed:
    """Train for a few seconds without locks in a folder that is removed, and look.

    Args:
        config: the settings; the run adds plainly (`write: racy`) and evaluates nothing.
        workers: mix of the run.
        seconds: of training.
        tell: told how far it is.

    Raises:
        MlxhogError: as `mlxhog.training.trainer.train`.
        WorkerFailed: no step was finished in that time.
    """
    never = Interval()
    with tempfile.TemporaryDirectory(prefix="mlxhog-analyze-") as folder:
        made = replace(
            config,
            workers=workers,
            strategy="hogwild",
            async_after=0.0,
            average_every=None,
            read="snapshot",
            max_workers=max(2, config.max_workers),
            write="racy",
            gpu_write="cpu",
            steps=None,
            tokens=None,
            time=seconds,
            eval_every=never,
            sample_every=never,
            save_every=never,
            out=folder,
            name="probe",
            resume=None,
        )

        def watch(progress: Progress) -> None:
            tell(f"{progress.step} steps")

        result = trainer.train(made, observer=watch)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if not result.staleness:
        raise WorkerFailed(
            f"the probe run finished no step within {seconds:g} s of training; give it longer, as "
            "in --seconds 30, or none with --seconds 0"
        )
    return Observed(
        source="probe",
        workers=len(result.workers),
        write="racy",
        steps=result.steps,
        mean=mean_of(result.staleness),
        largest=max(result.staleness),
        histogram=result.staleness,
        lost_update_rate=result.lost_update_rate,
        tokens_per_s=result.tokens_per_s,
        by_worker=summaries(
            {(worker.slot, worker.backend): worker.staleness for worker in result.workers}
        ),
    )
