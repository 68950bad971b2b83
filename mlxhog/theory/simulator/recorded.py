"""Simulated workers whose steps take as long as those of a run did."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxhog.checkpoint import run as runs
from mlxhog.config.sources import Given
from mlxhog.errors import ConfigError, DataError, RunError
from mlxhog.machine.workers import GPU_BACKENDS
from mlxhog.theory.simulator.times import Recorded
from mlxhog.theory.simulator.workers import Worker

TAKEN = ("workers", "times", "read", "apply")
"""Options that a run answers."""


def workers_of_run(spec: str, root: Path) -> list[Worker]:
    """The workers of a run, each with the times of its newest steps.

    These times are as long as they were beside the other workers of the run, so a machine that
    simulates them needs no limit of cores.

    Args:
        spec: the run: its path, its name, or latest.
        root: the folder of runs.

    Raises:
        RunError: there is no such run, or it recorded no times.
    """
    run = runs.find(spec, root)
    try:
        workers = [worker_of(one) for one in run.read_times()]
    except (LookupError, TypeError, ValueError, DataError) as error:
        raise RunError(
            f"{run.times_path} holds no times of steps ({error}); train on to have others"
        ) from error
    if not workers:
        raise RunError(
            f"the run {run.directory} recorded no times of steps; train it on (--resume) to "
            "have them, or name another run"
        )
    return workers


def worker_of(times: Mapping[str, Any]) -> Worker:
    """A worker, from its part of a run's times.

    Raises:
        LookupError, TypeError, ValueError, DataError: they are no times of steps.
    """
    return Worker(
        name=f"{times['slot']} {times['backend']}",
        compute=Recorded([us / 1e6 for us in times["compute_us"]]),
        read_s=float(times["read_s"]),
        apply_s=float(times["apply_s"]),
        other_s=float(times["other_s"]),
        on_core=times["backend"] not in GPU_BACKENDS,
    )


def options_of_run(given: Sequence[Given], workers: Sequence[Worker]) -> list[Given]:
    """The options with the number of workers of a run.

    Raises:
        ConfigError: an option is given that the run answers.
    """
    _refuse({option.name: option.origin for option in given}, TAKEN)
    return [*given, Given("workers", len(workers), "--run")]


def _refuse(given: dict[str, str], taken: Collection[str]) -> None:
    for name, origin in given.items():
        if name in taken:
            raise ConfigError(
                f"{origin} contradicts --run, which takes {', '.join(taken)} from what was "
                f"recorded; leave one of them out (--slow and --kill go with --run)"
            )
