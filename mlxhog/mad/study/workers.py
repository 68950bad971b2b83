"""The execution of a study's runs in worker processes of this machine.

A run is a call that lasts until its end, in a thread of the scheduler. If its worker dies by its
own fault (a crash, an exit), the run has failed. If it was killed from outside, the run is `Lost`,
and the scheduler repeats it.
"""

import faulthandler
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Self

from mlxhog.arena.child import Child, Died, Lane, Late
from mlxhog.base.durable import disk_errors
from mlxhog.errors import MlxhogError
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunRecord

REASON_CHARACTERS = 500
LOOK_S = 0.1
"""Between two looks whether the session has ended."""

RunFunction = Callable[..., RunRecord]
"""Executes a run, as `candidate.train(config, callbacks=.., rungs=..)`; workers import it."""

Prune = Callable[[Point], bool]
"""Whether to end a run that has reached a rung."""

Execute = Callable[[RunConfig, tuple[int, ...], Prune, Event], RunRecord]
"""Executes a run, which asks at rungs, as `Pool.execute` does."""


class Lost(Exception):
    """The worker of a run was killed from outside, or the session has ended; says which."""


class Pool:
    """Processes of this machine; none outlives the `with` block.

    Args:
        run: executes one run.
        parallel: processes; one starts with its first run, and executes many.
        threads: of each one's libraries.
        logs: directory for their logs.
    """

    def __init__(self, run: RunFunction, *, parallel: int, threads: int, logs: Path) -> None:
        self._run, self._threads, self._logs = run, threads, logs
        self._idle = [*range(parallel, 0, -1)]  # numbers of workers
        self._workers: dict[int, Child] = {}  # that have started, by their numbers

    def execute(
        self, config: RunConfig, rungs: tuple[int, ...], should_prune: Prune, ended: Event
    ) -> RunRecord:
        """Execute a run in an idle worker, and return its record.

        Raises:
            Lost: the worker was killed, or `ended` is set; the end of the block kills it.

        Concurrency: as many threads as there are workers may call it.
        """
        number, began_s = self._idle.pop(), time.monotonic()
        try:
            worker = self._workers.get(number) or self._start(number)
            worker.start(_execute, config, rungs)
            while True:
                try:
                    record: RunRecord = worker.take(LOOK_S, should_prune)
                    return record
                except Late:
                    if ended.is_set():
                        raise Lost("was stopped") from None
        except Died as died:
            self._workers.pop(number).close()
            if died.death.signal_name == "SIGKILL":
                raise Lost("was killed (SIGKILL), by a user or for lack of memory") from None
            seconds = time.monotonic() - began_s
            return config.record("failed", seconds=seconds, reason=str(died)[:REASON_CHARACTERS])
        finally:
            self._idle.append(number)

    def _start(self, number: int) -> Child:
        with disk_errors(f"making {self._logs}"):
            self._logs.mkdir(exist_ok=True)
            log = self._logs / f"worker-{number}.log"
            child = Child(threads=self._threads, promises=False, log=log, store={"run": self._run})
        self._workers[number] = child
        return child

    def __enter__(self) -> Self:
        """Return the pool; workers start with their first run."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker; no thread executes a run."""
        for worker in self._workers.values():
            worker.close()


def _execute(lane: Lane, config: RunConfig, rungs: tuple[int, ...]) -> RunRecord:
    faulthandler.enable()
    return attempt(lane.store["run"], config, rungs, lane.ask)


def attempt(run: RunFunction, config: RunConfig, rungs: tuple[int, ...], ask: Prune) -> RunRecord:
    """Return the record of a run, also if it raises; the traceback is in the worker's log."""
    began_s = time.monotonic()
    try:
        return run(config, callbacks=Callbacks(should_prune=ask), rungs=rungs)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        seconds = time.monotonic() - began_s
        return config.record("failed", seconds=seconds, reason=explain(error))


def explain(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())[:REASON_CHARACTERS]
    if isinstance(error, SystemExit):
        return f"left with exit code {error.code}"
    return text if isinstance(error, MlxhogError) else f"{type(error).__name__}: {text}"
