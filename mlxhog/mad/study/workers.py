"""The execution of a study's runs in worker processes of this machine.

A run is a call that lasts until its end, in a thread of the scheduler. If its worker dies by its
own fault (a crash, an exit), the run has failed. If it was killed from outside, the run is `Lost`,
and the scheduler repeats it.
"""

import contextlib
import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Self

from mlxhog.arena.worker_pool import WorkerProcess, last_lines
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


class _Worker(NamedTuple):
    process: WorkerProcess
    log: Path
    log_begin: int  # of this process, in bytes


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
        self._workers: dict[int, _Worker] = {}  # that have started, by their numbers

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
            pipe = worker.process.pipe
            try:
                pipe.send((config, rungs))
                while not isinstance(message := _received(pipe, ended), RunRecord):
                    pipe.send(should_prune(message))
                return message
            except (EOFError, OSError):
                del self._workers[number]
                reason = _reason(worker)
                seconds = time.monotonic() - began_s
                return config.record("failed", seconds=seconds, reason=reason)
        finally:
            self._idle.append(number)

    def _start(self, number: int) -> _Worker:
        with disk_errors(f"making {self._logs}"):
            self._logs.mkdir(exist_ok=True)
        log = self._logs / f"worker-{number}.log"
        begin = log.stat().st_size if log.exists() else 0
        process = WorkerProcess(
            _main, (str(log), self._run), name="mlxhog-candidate", threads=self._threads,
            daemon=None, pipe=True,
        )  # fmt: skip
        self._workers[number] = _Worker(process, log, begin)
        return self._workers[number]

    def __enter__(self) -> Self:
        """Return the pool; workers start with their first run."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker; no thread executes a run."""
        for worker in self._workers.values():
            worker.process.close()


def _received(pipe: Connection, ended: Event) -> Any:
    while not pipe.poll(LOOK_S):
        if ended.is_set():
            raise Lost("was stopped")
    return pipe.recv()


def _reason(worker: _Worker) -> str:
    """Wait for the death of a worker, and say why it died; `Lost` if it was killed.

    The log has the name of a fatal error, else its last line says it.
    """
    death = worker.process.reap(None)
    worker.process.close()
    if death.signal_name == "SIGKILL":
        raise Lost("was killed (SIGKILL), by a user or for lack of memory") from None
    verb = f"crashed ({death.signal_name})" if death.signal_name else f"left ({death})"
    lines = ["it left no log"]
    with contextlib.suppress(OSError), worker.log.open("rb") as file:
        lines = last_lines(file, worker.log_begin)
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return f"its process {verb}: {(fatal or lines)[-1][:REASON_CHARACTERS]}"


# -- in the worker ---------------------------------------------------------------------------------


def _main(pipe: Connection, log: str, run: RunFunction) -> None:
    """Entry point of the process: execute runs until the parent closes the pipe, or dies."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()

    def ask(point: Point) -> bool:
        pipe.send(point)
        return bool(pipe.recv())

    with contextlib.suppress(EOFError, OSError):
        while True:
            config, rungs = pipe.recv()
            pipe.send(attempt(run, config, rungs, ask))
    os._exit(0)  # without waiting for threads of a framework


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
