"""Staleness: the number of updates by others that an update was late, of a run or of a short one.

With P workers that always have a gradient in flight the mean over all updates is P - 1 at any
speeds: each update falls between the read and the write of the P - 1 others. Its largest value has
no such limit. The theory's tau is a lag in updates: a property of a run, not of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlxhog.arena.layout import PROBE_FLOATS
from mlxhog.checkpoint.run import Run
from mlxhog.config.config import TrainConfig
from mlxhog.report.views import Tell
from mlxhog.strategies import Hogwild
from mlxhog.theory.short_runs import run_shortly
from mlxhog.theory.simulator import Staleness


@dataclass(frozen=True, kw_only=True)
class ObservedStaleness:
    """Observed staleness: updates by others between a step's read and its write."""

    source: str  # "run" or "probe"
    workers: int  # number of workers
    write: str  # as the option of that name
    all: Staleness  # over all steps
    histogram: Mapping[int, int]  # staleness -> steps
    lost_update_rate: float | None  # share of lost increments; None if not measured
    increments: int  # that were counted: each step adds 1 to every probe
    # the distribution of each worker; slow workers are later than fast ones
    by_worker: tuple[Staleness, ...] = ()


def probe_run(
    config: TrainConfig, *, workers: str, seconds: float, tell: Tell
) -> ObservedStaleness:
    """Train for a few seconds without locks in a temporary folder, and return the staleness.

    Args:
        config: the settings; the run adds plainly (`write: racy`) and evaluates nothing.
        workers: mix of the run.
        seconds: of training.
        tell: called with the progress.

    Raises:
        MlxhogError: as `mlxhog.training.run.train`.
        WorkerFailed: no step was finished in that time.
    """
    lock_free = Hogwild()
    if isinstance(config.strategy, Hogwild):
        lock_free = config.strategy.lock_free()
    result, _ = run_shortly(
        config,
        tell,
        seconds=seconds,
        fewest=1,
        flag="--seconds",
        strategy=lock_free,
        workers=workers,
        read="snapshot",
        max_workers=None if config.max_workers is None else max(2, config.max_workers),
        write="racy",
        gpu_write="cpu",
    )
    return _summary("probe", asdict(result), "racy")


def of_run(run: Run, write: str) -> ObservedStaleness | None:
    """Read the staleness of the newest command that trained a run; None if it took no step.

    Args:
        run: the run.
        write: as the option of that name.
    """
    lines = [line for line in run.read_metrics() if line.get("step")]
    return _summary("run", lines[-1], write) if lines else None


def _summary(source: str, line: Mapping[str, Any], write: str) -> ObservedStaleness:
    """Summarise the totals of a command."""

    def histogram(of: Mapping[str, Any]) -> dict[int, int]:
        return {int(lag): int(steps) for lag, steps in sorted(of["staleness"].items())}

    workers, overall = line["workers"], Staleness.of("all", histogram(line))
    return ObservedStaleness(
        source=source,
        workers=len(workers),
        write=write,
        all=replace(overall, max=max(overall.max, *(one["max_staleness"] for one in workers))),
        histogram=histogram(line),
        lost_update_rate=line["lost_update_rate"],
        increments=overall.steps * PROBE_FLOATS,
        by_worker=tuple(
            Staleness.of(f"{one['slot']} {one['backend']}", histogram(one))
            for one in workers
            if one["staleness"]
        ),
    )
