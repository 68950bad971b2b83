"""A session of a study: its execution on this machine, or on a Ray cluster."""

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from mlxhog.base import machine
from mlxhog.base.workers import resolve_workers
from mlxhog.errors import ConfigError
from mlxhog.mad.options import ExecutionConfig, Protocol
from mlxhog.mad.study import ray
from mlxhog.mad.study.scheduler import Scheduler, StudyProgress
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study
from mlxhog.mad.study.workers import Executor, Pool, RunFunction
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.sharing import check_sharing, shared_tables
from mlxhog.report.views import Observer


def check_execution(how: ExecutionConfig, study: Study) -> None:
    """Refuse an execution that is impossible here, before a study is created.

    Raises:
        ConfigError: a candidate is impossible, candidates cannot share an embedding, or the number
            of candidates at once on a cluster is missing.
        EnvironmentLacks: a backend, or Ray, is not installed.
    """
    study.check()
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
        check_sharing(Protocol(**{**study.measured.protocol, **study.protocol}), study.workers)
    if how.executor == "ray":
        ray.check()


def execute(
    store: Store,
    study: Study,
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
        study: its definition.
        how: its execution.
        parallel: candidates at once.
        observer: gets the progress.
        retry_failed: repeat the failed runs of earlier sessions.
        run: executes one run; default: `candidate.train`.

    Raises:
        ConfigError: the execution is impossible.
        StudyError: another process works on the study, or its store is damaged.
        EnvironmentLacks: Ray is missing, or the disk is full; the results so far are in the store.
        WorkerFailed: runs cannot begin on the cluster.
    """
    check_execution(how, study)
    run = run or partial(train, parallel=parallel)
    sizes: dict[str, Any] = {"parallel": parallel, "threads": study.threads}
    with store.lock(), ExitStack() as stack:
        if study.share_embedding:
            run = stack.enter_context(shared_tables(study.runs(study.first)))
        workers: AbstractContextManager[Executor]
        if how.executor == "ray":
            workers = ray.cluster(run, cores=study.cores, address=how.ray_address, **sizes)
        else:
            workers = Pool(run, logs=store.directory / "logs", **sizes)
        executor, tell = stack.enter_context(workers), stack.enter_context(observer)
        scheduler = Scheduler(
            store, study, executor, limit=how.limit, observer=tell, retry_failed=retry_failed
        )
        return scheduler.run()
