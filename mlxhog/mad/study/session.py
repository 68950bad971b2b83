"""A session of a study: its possible runs, their scores, and their execution."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from mlxhog.base import machine
from mlxhog.base.workers import resolve_workers
from mlxhog.errors import ConfigError
from mlxhog.mad import tasks
from mlxhog.mad.options import ExecutionConfig, Protocol
from mlxhog.mad.run import RunConfig
from mlxhog.mad.scores import scores
from mlxhog.mad.search.candidates import CandidateSet
from mlxhog.mad.search.pruning import Halving, Pruner
from mlxhog.mad.search.samplers import Grid, Listed, Sampler, make_sampler
from mlxhog.mad.search.space import to_space
from mlxhog.mad.study import ray
from mlxhog.mad.study.scheduler import Best, Scheduler, StudyProgress
from mlxhog.mad.study.store import Store, StudyRecord
from mlxhog.mad.study.study import Study
from mlxhog.mad.study.workers import Executor, Pool, RunFunction
from mlxhog.mad.suites import Suite, expand
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.evaluation import most_steps
from mlxhog.mad.training.sharing import check_sharing, shared_tables
from mlxhog.models.mad.layers import at_width
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.report.views import Observer


class Planning:
    """The candidates, runs and scores of a study.

    Raises:
        ConfigError: no such suite or layer, or the space has no candidate.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.suite: Suite = study.measured()
        self.dim = self.suite.dim
        listed = (at_width(parse(text), self.dim) for text in study.candidates)
        self.listed = list(dict.fromkeys(listed))
        self._space: CandidateSet | None = None
        if study.space:
            settings = (tasks.resolve(one.task, one.settings) for one in self.suite.settings)
            longest = max(one.test_length for one in settings)
            self._space = CandidateSet(to_space(study.space), self.dim, longest)
        for candidate in study.candidates:
            self.runs(candidate)  # refuses one that cannot be built

    @property
    def first(self) -> str:
        """The first candidate."""
        return canonical(self.listed[0] if self._space is None else self._space.first)

    @property
    def candidates(self) -> int | None:
        """Number of candidates; None for a large space with bounds."""
        return len(self.listed) if self._space is None else self._space.count

    @property
    def runs_each(self) -> int:
        """Runs of a candidate."""
        return self.suite.runs * len(self.study.seeds)

    @property
    def total(self) -> int | None:
        """Runs of all candidates; None if these are not counted."""
        return None if self.candidates is None else self.candidates * self.runs_each

    def sampler(self) -> Sampler:
        """Return the sampler in its initial state.

        Raises:
            ConfigError: no such sampler.
        """
        if self._space is None:
            return Grid(Listed(self.listed))
        return make_sampler(self.study.sampler, self._space, self.study.sampler_seed)

    def pruner(self, store: Store) -> Pruner:
        """Return the pruner in its initial state."""
        return Halving(store.curve) if self.study.prune else Pruner()

    def runs(self, candidate: str) -> list[RunConfig]:
        """Return the runs of a candidate, setting after setting.

        Raises:
            ConfigError: it cannot be built at this width.
        """
        study = self.study
        runs = list(
            expand(
                self.suite,
                parse(candidate),
                study.seeds,
                position=study.position,
                workers=study.workers,
                threads=study.threads,
                protocol=study.protocol,
            )
        )
        for run in runs:
            run.model()  # refuses one that cannot be built
        return runs

    @property
    def steps(self) -> int:
        """The most steps of a candidate's runs."""
        return sum(map(most_steps, self.runs(self.first)))

    def judge(self, records: Sequence[StudyRecord]) -> Best:
        """Return a candidate's score: of validation rows if the study selects by them.

        A pruned candidate scores 0 on its skipped runs. They may be harder than the others, and a
        sampler must not rank it above candidates that had them.
        """
        (row,) = scores(records, self.suite, self.study.select, self.study.seeds)
        lacks = len(row.missing)
        share = row.n_runs / (row.n_runs + lacks) if row.status == "pruned" else 1.0
        score = share * row.worth
        return Best(candidate=row.candidate, score=score, interval=row.interval, missing=lacks)


def check_execution(how: ExecutionConfig, study: Study) -> None:
    """Refuse an execution that is impossible here, before a study is created.

    Raises:
        ConfigError: candidates cannot share an embedding, or the number of candidates at once on a
            cluster is missing.
        EnvironmentLacks: a backend, or Ray, is not installed.
    """
    if how.ray_address is None:
        resolve_workers(study.workers, study.threads, machine=machine.here())
    elif how.parallel is None:
        raise ConfigError(
            "--ray-address needs --parallel, the candidates at once on the cluster; add it"
        )
    if study.share_embedding:
        if how.executor == "ray":
            raise ConfigError(
                "--share-embedding keeps one table in this machine's memory; use --executor local"
            )
        check_sharing(Protocol(**{**study.measured().protocol, **study.protocol}), study.workers)
    if how.executor == "ray":
        ray.check()


def execute(
    store: Store,
    planning: Planning,
    how: ExecutionConfig,
    parallel: int,
    observer: AbstractContextManager[Observer[StudyProgress]],
    *,
    retry_failed: bool = False,
    run: RunFunction | None = None,
) -> StudyProgress:
    """Execute a session.

    Args:
        store: of the study; locked until the session ends.
        planning: of the same study.
        how: its execution.
        parallel: candidates at once.
        observer: gets the progress.
        retry_failed: repeat the failed runs of earlier sessions.
        run: executes one run; default: `candidate.train`.

    Raises:
        ConfigError: the execution is impossible.
        StudyError: another process works on the study, or its store is damaged.
        EnvironmentLacks: Ray is missing, or the disk is full; the results so far are in the store.
        WorkerFailed: workers cannot start.
    """
    study = planning.study
    check_execution(how, study)
    run = run or partial(train, parallel=parallel)
    sizes: dict[str, Any] = {"parallel": parallel, "threads": study.threads}
    with store.lock(), ExitStack() as stack:
        if study.share_embedding:
            run = stack.enter_context(shared_tables(planning.runs(planning.first)))
        workers: AbstractContextManager[Executor]
        if how.executor == "ray":
            workers = ray.cluster(
                run, cores=study.cores, address=how.ray_address, silence_s=how.silence, **sizes
            )
        else:
            workers = Pool(run, logs=store.directory / "logs", silence_s=how.silence, **sizes)
        executor, tell = stack.enter_context(workers), stack.enter_context(observer)
        return Scheduler(
            store,
            planning.sampler(),
            planning.runs,
            planning.judge,
            executor,
            limit=how.limit,
            pruner=planning.pruner(store),
            observer=tell,
            total=planning.total,
            retry_failed=retry_failed,
        ).run()
