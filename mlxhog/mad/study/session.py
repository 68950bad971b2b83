"""One session of a study: open its store, execute its runs, and end every worker."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from mlxhog.machine import machine
from mlxhog.mad.study import ray
from mlxhog.mad.study import store as stores
from mlxhog.mad.study import study as studies
from mlxhog.mad.study.execution import ExecutionConfig
from mlxhog.mad.study.planning import Planning, Proposals
from mlxhog.mad.study.pool import Pool, RunFunction
from mlxhog.mad.study.progress import Observer
from mlxhog.mad.study.scheduler import Outcome, Scheduler
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study
from mlxhog.mad.study.worker import local
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.sharing import shared_tables


def find_same(study: Study, root: str, name: str) -> Store | None:
    """Return the store of a study, None if it is not there yet.

    Raises:
        StudyError: another study has that name, or nothing can.
    """
    stores.check_name(name)
    directory = Path(root).absolute() / name
    if not stores.is_study(directory):
        return None
    store = Store(directory)
    studies.refuse_another(store, study)
    return store


def open_store(study: Study, root: str, name: str) -> Store:
    """Return the store of a study, made if it is not there.

    Raises:
        StudyError: as `find_same`, or the directory cannot be made.
    """
    return find_same(study, root, name) or stores.create(Path(root), name, study.to_dict())


def execute(
    store: Store,
    planning: Planning,
    how: ExecutionConfig,
    parallel: int,
    observer: AbstractContextManager[Observer],
    *,
    retry_failed: bool = False,
    run: RunFunction = train,
) -> Outcome:
    """Go through a session.

    Args:
        store: of the study; held until the session ends.
        planning: of the same study.
        how: it is executed.
        parallel: candidates at once.
        observer: told how it goes.
        retry_failed: run again what failed in earlier sessions.
        run: executes one run.

    Raises:
        ConfigError: what `how` asks for cannot be.
        StudyError: another process works on the study, or its store is damaged.
        EnvironmentLacks: Ray is missing, or the disk is full; what was done is in the store.
        WorkerFailed: workers cannot start.
    """
    study = planning.study
    how.require(study, machine.here())
    with store.lock(), ExitStack() as stack:
        if study.share_embedding:
            first = planning.runs(planning.first)
            run = stack.enter_context(shared_tables(one.config for one in first))
        candidates = Proposals(planning.sampler(), store)
        with _executor(store, study, how, parallel, run) as executor, observer as tell:
            return Scheduler(
                store,
                candidates,
                planning.runs,
                planning.judge,
                executor,
                limit=how.limit,
                pruner=planning.pruner(store),
                observer=tell,
                total=planning.total,
                retry_failed=retry_failed,
                batch=study.batch_candidates,
            ).run()


def _executor(
    store: Store, study: Study, how: ExecutionConfig, parallel: int, run: RunFunction
) -> AbstractContextManager[Pool]:
    logs = store.directory / "logs"
    if how.executor == "local":
        return local(
            run,
            parallel=parallel,
            threads=study.threads,
            logs=logs,
            silence_s=how.silence,
            memory_limit=how.memory_bytes,
        )
    return ray.cluster(
        run,
        parallel=parallel,
        threads=study.threads,
        logs=logs,
        silence_s=how.silence,
        memory_limit=how.memory_bytes,
        cores=study.cores,
        address=how.ray_address,
    )
