"""Run a classic problem: `train` once, or `compare` it with the serial reference, on one arena."""

from __future__ import annotations

from functools import partial

import numpy as np

from mlxhog.arena import Arena
from mlxhog.classic import checks, handout, places, probe, schemes
from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.course import Plan
from mlxhog.classic.job import Job
from mlxhog.classic.problem import Problem
from mlxhog.classic.result import ClassicResult
from mlxhog.classic.running import Running
from mlxhog.classic.schemes import SERIAL, Scheme
from mlxhog.classic.watch import Unwatched, Watch


def train(problem: Problem, config: ClassicConfig, watch: Watch | None = None) -> ClassicResult:
    """Run a problem by the scheme that `config` names.

    Args:
        problem: from `problems.create`, or any other.
        config: None in an option is the problem's own default.
        watch: told how it goes.

    Raises:
        ConfigError: the options contradict each other or the problem.
        DataError: the data hold NaN or infinity.
        EnvironmentLacks: not enough memory.
        WorkerFailed: a worker died that the scheme cannot do without, or several did too often.
    """
    with Session(problem, config) as session:
        return session.run(watch or Unwatched())


def compare(
    problem: Problem, config: ClassicConfig, watch: Watch | None = None
) -> tuple[ClassicResult, ClassicResult]:
    """Return the run of `train` and, done before it, that of the serial reference.

    Where serial diverges, the run is not begun, and the serial one returned for both.
    """
    with Session(problem, config) as session:
        serial = session.serial(watch or Unwatched())
        if serial.status != "done" or session.scheme is SERIAL:
            return serial, serial
        return session.run(watch or Unwatched()), serial


class Session:
    """A problem in its arena, for one run after another, each from the same initial values.

    Attributes:
        scheme: that the options ask for.
        workers: its processes.
    """

    def __init__(self, problem: Problem, config: ClassicConfig) -> None:
        """Check everything, then create the arena and read the data into it; see `train`."""
        self.problem, self.config = problem, config
        own = problem.defaults
        self.scheme = schemes.choose(config.scheme, config.write, own)
        checks.together(config, self.scheme)
        self.batch = own.batch_size if config.batch_size is None else config.batch_size
        self.workers = checks.workers(problem, config, self.scheme, self.batch)
        self.initial, data = problem.initial(config.seed), problem.data()
        checks.finite(problem.name, {**self.initial, **data})
        self.shapes = {name: values.shape for name, values in data.items()}
        self.arena = Arena.create(
            places.layout(
                problem.params(),
                data,
                problem.n_examples,
                self.workers,
                copies=self.scheme.copies,
            ),
            write="racy" if self.scheme.kind == "racy" else "lossless",
        )
        for name, view in places.data(self.arena, self.shapes).items():
            np.copyto(view, data[name])

    def __enter__(self) -> Session:
        """Release the arena when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the arena."""
        self.arena.close()

    def run(self, watch: Watch) -> ClassicResult:
        """The run that the options ask for."""
        return self._run(self.scheme, self.workers, self.config.handout, watch)

    def serial(self, watch: Watch) -> ClassicResult:
        """The same steps by one worker, one after another."""
        return self._run(SERIAL, 1, "once", watch)

    def _run(self, scheme: Scheme, workers: int, hand_out: str, watch: Watch) -> ClassicResult:
        config, own = self.config, self.problem.defaults
        for name, values in places.params(self.arena).items():
            np.copyto(values, self.initial[name])
        plan = Plan(
            scheme=scheme,
            workers=workers,
            hand_out=hand_out,
            average_at_end=config.average == "end",
            epochs=own.epochs if config.epochs is None else config.epochs,
            lr=own.lr if config.lr is None else config.lr,
            beta=own.beta if config.beta is None else config.beta,
            batch=self.batch,
            sampling=config.sampling,
            seed=config.seed,
            probe_every=self._probe_every(scheme, workers),
        )
        jobs = partial(self._job, plan, checks.cores(workers))
        found = Running(self.problem, self.arena, plan, jobs, watch).execute()
        return ClassicResult(
            problem=self.problem.name,
            scheme=scheme.name,
            write=scheme.kind.replace("_", "-") if scheme.name == "hogwild" else "",
            handout=hand_out,
            workers=workers,
            status=found.status,
            start_s=found.start_s,
            initial=found.initial,
            epochs=tuple(found.epochs),
            lost_updates=found.lost,
            probe_updates=found.raises,
            missed=found.missed,
            replaced=found.replaced,
            advice=found.advice,
            params={name: values.copy() for name, values in places.params(self.arena).items()},
        )

    def _probe_every(self, scheme: Scheme, workers: int) -> int | None:
        if workers == 1 or scheme.copies:
            return None
        private = self.config.hot if scheme.kind == "hot_cold" else 0
        return probe.every(self.problem.supports(), private)

    def _job(self, plan: Plan, cores: list[int] | None, rank: int) -> Job:
        coordinates = sum(slot.size for slot in self.arena.layout.slots.values())
        return Job(
            handle=self.arena.handle(),
            rank=rank,
            workers=plan.workers,
            scheme=plan.scheme,
            kernel=self.problem.kernel,
            shapes=self.shapes,
            batch=plan.batch,
            queue=handout.claim(plan.batch) if plan.hand_out == "queue" else 0,
            hot=min(self.config.hot, coordinates),
            period=self.config.period,
            probe_every=plan.probe_every or 1,
            core=None if cores is None else cores[rank],
        )
