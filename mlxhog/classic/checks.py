"""What must hold before a run begins: of its options together, and of its data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problem import Problem
from mlxhog.classic.schemes import Scheme
from mlxhog.errors import ConfigError, DataError
from mlxhog.machine import machine

MOST_EXAMPLES = 2**31 - 1  # an order is int32


def together(config: ClassicConfig, scheme: Scheme) -> None:
    """Refuse options that have nothing to say about the scheme, or contradict it.

    Raises:
        ConfigError: there are such.
    """
    default = ClassicConfig()
    if config.handout == "queue" and scheme.kind in ("round_robin", "sync"):
        raise ConfigError(
            f"--handout queue is for schemes in which nobody waits for a turn; {scheme.name} "
            "deals turns in advance: leave --handout out"
        )
    if config.average != default.average and not scheme.copies:
        raise ConfigError(f"--average {config.average} is for --scheme avg_runs, not {scheme.name}")
    for flag, given, usual in (
        ("--hot", config.hot, default.hot),
        ("--period", config.period, default.period),
    ):
        if given != usual and scheme.kind != "hot_cold":
            raise ConfigError(f"{flag} {given} is for --write hot-cold; leave it out")


def workers(problem: Problem, config: ClassicConfig, scheme: Scheme, batch: int) -> int:
    """The number of workers; "auto" is one per core that this process may use.

    Raises:
        ConfigError: there are fewer examples, or the scheme has one worker.
    """
    n = problem.n_examples
    if n > MOST_EXAMPLES:
        raise ConfigError(f"{problem.name} has {n:,} examples; at most {MOST_EXAMPLES:,} work")
    if batch > n:
        raise ConfigError(f"--batch-size {batch} is more than the {n:,} examples of {problem.name}")
    if scheme.one_worker:
        if config.workers not in (None, 1):
            raise ConfigError(
                f"--scheme {scheme.name} has one worker, not {config.workers}; leave --workers out"
            )
        return 1
    most = n // batch
    if config.workers is None:
        return min(machine.here().cores, most)
    if config.workers > most:
        raise ConfigError(
            f"--workers {config.workers}, but {problem.name} has {n:,} examples in mini-batches of "
            f"{batch}; give every worker one, with at most --workers {most}"
        )
    return config.workers


def cores(count: int) -> list[int] | None:
    """A core for each of `count` workers; None where there are not as many, or no way to say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    mine = sorted(os.sched_getaffinity(0))
    return mine[:count] if len(mine) >= count else None


def finite(name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse data that are not numbers.

    Args:
        name: of the problem.
        arrays: by name.

    Raises:
        DataError: the first NaN or infinity, and where.
    """
    for key, values in arrays.items():
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        at = np.unravel_index(int(np.argmin(np.isfinite(values))), values.shape)
        where = ", ".join(map(str, at))
        raise DataError(
            f"{key}[{where}] of {name} is {values[at]}; training needs finite numbers, so leave "
            "that example out or correct it"
        )
