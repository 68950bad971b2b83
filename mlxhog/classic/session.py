"""Run a classic problem: `train` once, or `compare` it with the serial reference, on one arena."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Arena
from mlxhog.classic import schemes
from mlxhog.classic.config import ClassicConfig, RunSettings
from mlxhog.classic.dispatcher import claim_size
from mlxhog.classic.layout import data_views, param_views, plan_layout
from mlxhog.classic.problem import Problem
from mlxhog.classic.result import ClassicResult, NoObserver, Observer
from mlxhog.classic.run import Run, probe_interval
from mlxhog.classic.schemes import SERIAL, Scheme
from mlxhog.classic.worker import WorkerArgs
from mlxhog.errors import ConfigError, DataError
from mlxhog.machine import machine

MOST_EXAMPLES = 2**31 - 1  # an order is int32


def train(
    problem: Problem, config: ClassicConfig, observer: Observer | None = None
) -> ClassicResult:
    """Run a problem by the scheme that `config` names.

    Args:
        problem: from `problems.create`, or any other.
        config: None in an option is the problem's own default.
        observer: told how it goes.

    Raises:
        ConfigError: the options contradict each other or the problem.
        DataError: the data hold NaN or infinity.
        EnvironmentLacks: not enough memory.
        WorkerFailed: a worker died that the scheme cannot do without, or several did too often.
    """
    with Session(problem, config) as session:
        return session.run(observer or NoObserver())


def compare(
    problem: Problem, config: ClassicConfig, observer: Observer | None = None
) -> tuple[ClassicResult, ClassicResult]:
    """Return the run of `train` and, done before it, that of the serial reference.

    Where serial diverges, the run is not begun, and the serial one returned for both.
    """
    observer = observer or NoObserver()
    with Session(problem, config) as session:
        serial = session.serial(observer)
        if serial.status != "done" or session.scheme is SERIAL:
            return serial, serial
        return session.run(observer), serial


class Session:
    """A problem in its arena, for one run after another, each from the same initial values.

    Attributes:
        scheme: that the options ask for.
        workers: its processes.
    """

    def __init__(self, problem: Problem, config: ClassicConfig) -> None:
        """Check everything, then create the arena and read the data into it; see `train`."""
        self.problem, self.config = problem, config
        defaults = problem.defaults
        self.scheme = schemes.choose(config.scheme, config.write, defaults)
        check_options(config, self.scheme)
        self.batch = defaults.batch_size if config.batch_size is None else config.batch_size
        self.workers = count_workers(problem, config, self.scheme, self.batch)
        self.initial, data = problem.initial(config.seed), problem.data()
        check_finite(problem.name, {**self.initial, **data})
        self.shapes = {name: values.shape for name, values in data.items()}
        self.arena = Arena.create(
            plan_layout(
                problem.params(),
                data,
                problem.n_examples,
                self.workers,
                copies=self.scheme.copies,
            ),
            write="racy" if self.scheme.kind == "racy" else "lossless",
        )
        for name, view in data_views(self.arena, self.shapes).items():
            np.copyto(view, data[name])

    def __enter__(self) -> Session:
        """Release the arena when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the arena."""
        self.arena.close()

    def run(self, observer: Observer) -> ClassicResult:
        """The run that the options ask for."""
        return self._run(self.scheme, self.workers, self.config.handout, observer)

    def serial(self, observer: Observer) -> ClassicResult:
        """The same steps by one worker, one after another."""
        return self._run(SERIAL, 1, "once", observer)

    def _run(self, scheme: Scheme, workers: int, handout: str, observer: Observer) -> ClassicResult:
        config, defaults = self.config, self.problem.defaults
        for name, values in param_views(self.arena).items():
            np.copyto(values, self.initial[name])
        settings = RunSettings(
            scheme=scheme,
            workers=workers,
            handout=handout,
            average_at_end=config.average == "end",
            epochs=defaults.epochs if config.epochs is None else config.epochs,
            lr=defaults.lr if config.lr is None else config.lr,
            beta=defaults.beta if config.beta is None else config.beta,
            batch=self.batch,
            sampling=config.sampling,
            seed=config.seed,
            probe_every=self._probe_every(scheme, workers),
        )
        make_args = partial(self._worker_args, settings, free_cores(workers))
        state = Run(self.problem, self.arena, settings, make_args, observer).execute()
        return ClassicResult(
            problem=self.problem.name,
            scheme=scheme.name,
            write=scheme.kind.replace("_", "-") if scheme.name == "hogwild" else "",
            handout=handout,
            workers=workers,
            status=state.status,
            start_s=state.start_s,
            initial=state.initial,
            epochs=tuple(state.epochs),
            lost_updates=state.lost_updates,
            probe_updates=state.probe_updates,
            missed=state.missed,
            replaced=state.replaced,
            advice=state.advice,
            params={name: values.copy() for name, values in param_views(self.arena).items()},
        )

    def _probe_every(self, scheme: Scheme, workers: int) -> int | None:
        if workers == 1 or scheme.copies:
            return None
        private = self.config.hot if scheme.kind == "hot_cold" else 0
        return probe_interval(self.problem.supports(), private)

    def _worker_args(self, settings: RunSettings, cores: list[int] | None, rank: int) -> WorkerArgs:
        coordinates = sum(slot.size for slot in self.arena.layout.slots.values())
        return WorkerArgs(
            handle=self.arena.handle(),
            rank=rank,
            workers=settings.workers,
            scheme=settings.scheme,
            kernel=self.problem.kernel,
            shapes=self.shapes,
            batch=settings.batch,
            queue=claim_size(settings.batch) if settings.handout == "queue" else 0,
            hot=min(self.config.hot, coordinates),
            period=self.config.period,
            probe_every=settings.probe_every or 1,
            core=None if cores is None else cores[rank],
        )


def check_options(config: ClassicConfig, scheme: Scheme) -> None:
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
    for flag, value, usual in (
        ("--hot", config.hot, default.hot),
        ("--period", config.period, default.period),
    ):
        if value != usual and scheme.kind != "hot_cold":
            raise ConfigError(f"{flag} {value} is for --write hot-cold; leave it out")


def count_workers(problem: Problem, config: ClassicConfig, scheme: Scheme, batch: int) -> int:
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


def free_cores(count: int) -> list[int] | None:
    """A core for each of `count` workers; None where there are not as many, or no way to say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[:count] if len(allowed) >= count else None


def check_finite(name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
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
