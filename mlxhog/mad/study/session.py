"""A session of a study: its execution on this machine, or on a Ray cluster."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from mlxhog.base import darwin, machine
from mlxhog.base.processes import require_children
from mlxhog.base.quantities import Interval
from mlxhog.base.workers import GPU_BACKENDS, resolve_workers
from mlxhog.display.views import Observer
from mlxhog.errors import ConfigError
from mlxhog.mad.options import ExecutionConfig, Recipe
from mlxhog.mad.study import final, ray
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.scheduler import Scheduler, StudyProgress
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.workers import Executor, Pool, RunFunction
from mlxhog.mad.training import text
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.sharing import check_sharing, shared_tables

GPU_CANDIDATES = 2
"""Default number at once on one GPU without a budget of time: one computes, the other prepares."""


def check_execution(how: ExecutionConfig, study: StudyDefinition) -> int:
    """Return the candidates at once, if the execution is possible here; it creates no study.

    Raises:
        ConfigError: a candidate is impossible, candidates cannot share an embedding, or the number
            of candidates at once on a cluster is missing, or here too large for their times, also
            through Ray.
        EnvironmentLacks: a backend, or Ray, is not installed, or this process is daemonic.
    """
    require_children()
    study.check()
    if study.is_text and how.budget.steps is not None:
        raise ConfigError(
            "--budget counts candidates of tasks; suite lm has --candidates, or give a time: "
            "--budget 2h"
        )
    here = machine.here()
    if how.ray_address is None:
        resolve_workers(study.workers, study.threads, machine=here)
    elif how.parallel is None:
        raise ConfigError(
            "--ray-address needs --parallel, the candidates at once on the cluster; add it"
        )
    if study.share_embedding:
        if how.executor == "ray":
            raise ConfigError(
                "--share-embedding keeps one table in this machine's memory; use --executor local"
            )
        check_sharing(Recipe(**{**study.measured.recipe, **study.recipe}), study.workers)
    if how.executor == "ray":
        ray.check()
    on_gpu = any(backend in GPU_BACKENDS for backend in study.workers.split(","))
    if how.parallel is None and on_gpu:
        return 1 if study.is_timed else GPU_CANDIDATES
    if how.parallel is None:
        return max(1, (here.cores - 1) // study.cores)
    most = 1 if on_gpu else max(1, here.cores // study.cores)
    if study.is_timed and how.ray_address is None and how.parallel > most:
        what, shared = ("one GPU is", "it") if on_gpu else (f"{here.cores} cores are", "cores")
        raise ConfigError(
            f"--parallel is {how.parallel}, and {what} enough for {most} at once: candidates with "
            f"a budget of time would share {shared}, and their numbers would not compare; give "
            f"--parallel {most}"
        )
    return how.parallel


def execute(
    store: Store,
    study: StudyDefinition,
    how: ExecutionConfig,
    observer: Observer[StudyProgress] | None = None,
    run: RunFunction | None = None,
) -> StudyProgress:
    """Execute a session, which locks the store; `run` is `candidate.train` by default."""
    parallel, threads = check_execution(how, study), study.threads
    folder = store.running if how.ray_address is None else None  # another machine has its own
    ours = partial(text.train_any, folder=folder) if study.is_text else train
    run = run or partial(ours, parallel=parallel)
    keep: Callable[[], None] | None = None
    with store.lock(), ExitStack() as stack:
        if study.is_text:
            store.clear_running()
        if study.share_embedding:
            shared = shared_tables(study.runs(study.first), store.tables())
            run = tables = stack.enter_context(shared)
            keep = partial(tables.write, store.keep_tables)
        if how.executor == "ray":
            cluster = ray.cluster(
                run, parallel=parallel, threads=threads, cores=study.cores, address=how.ray_address
            )
            executor: Executor = stack.enter_context(cluster)
        else:
            pool = Pool(run, parallel=parallel, threads=threads, logs=store.directory / "logs")
            executor = stack.enter_context(pool)
        tell, note = observer or (lambda progress: None), stack.enter_context(darwin.awake())
        ended = Scheduler(store, study, executor, parallel, how.budget, tell, keep).run(note)
        return _with_final(store, study, how.budget, ended, tell) if study.is_text else ended


def _with_final(
    store: Store,
    study: StudyDefinition,
    limit: Interval,
    ended: StudyProgress,
    tell: Observer[StudyProgress],
) -> StudyProgress:
    """Compare the first two candidates of a study without runs left; return the last state."""

    def say(message: str) -> None:
        tell(replace(ended, message=message))

    began_s = time.monotonic()
    rows, status = study.rows(store.records()), ended.status
    two = [row for row in rows if row.status == "done" and not row.beyond][:2]
    if study.pairs and status == "done" and len(two) == 2:
        kept = store.final()
        try:
            if kept is None or [kept["a"], kept["b"]] != [row.candidate for row in two]:
                kept = final.compare(store, study, two, say, limit)
                if kept is not None:
                    store.keep_final(kept)
            if kept is None:
                status = "budget"
            else:
                say(f"final of the first two: {kept['answer']}")
        except KeyboardInterrupt:
            status = "interrupted"
    best = next(iter(study.rows(store.records(), store.final())), None)
    elapsed_s = ended.elapsed_s + time.monotonic() - began_s
    return replace(ended, status=status, best=best, elapsed_s=elapsed_s)
