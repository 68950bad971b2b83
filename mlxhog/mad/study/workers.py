"""Executors of the runs of a study, and the worker processes of this machine.

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
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.base.durable import disk_errors
from mlxhog.errors import MlxhogError
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunRecord

REASON_CHARACTERS = 500

RunFunction = Callable[..., RunRecord]
"""Executes a run, as `candidate.train(config, callbacks=.., rungs=..)`; workers import it."""

Prune = Callable[[Point], bool]
"""Whether to end a run that has reached a rung."""


class Lost(Exception):
    """The worker of a run was killed from outside; the message says how."""


class Executor(ABC):
    """Executes runs: `Pool` on this machine, `ray.RayPool` on a cluster.

    Attributes:
        parallel: runs at once.
    """

    parallel: int

    @abstractmethod
    def execute(self, config: RunConfig, rungs: tuple[int, ...], should_prune: Prune) -> RunRecord:
        """Execute a run, which asks at rungs, and return its record.

        Raises:
            Lost: its worker was killed.

        Concurrency: as many threads as runs at once may call it.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let every run in progress be lost."""


class Pool(Executor):
    """Processes of this machine; none outlives the `with` block.

    Args:
        run: executes one run.
        parallel: processes; one starts with its first run, and executes many.
        threads: of each one's libraries.
        logs: directory for their logs.
    """

    def __init__(self, run: RunFunction, *, parallel: int, threads: int, logs: Path) -> None:
        self.parallel = parallel
        paths = (logs / f"worker-{number}.log" for number in range(1, parallel + 1))
        self._workers = [_Worker(run, threads, path) for path in paths]
        self._idle, self._stopped = self._workers[::-1], False

    def execute(self, config: RunConfig, rungs: tuple[int, ...], should_prune: Prune) -> RunRecord:
        """Execute a run in an idle worker."""
        worker = self._idle.pop()
        try:
            worker.start()
            if self._stopped:
                raise Lost("was stopped")
            return worker.execute(config, rungs, should_prune)
        finally:
            self._idle.append(worker)

    def stop(self) -> None:
        """Kill the workers, those that are starting included."""
        self._stopped = True
        for process in [worker.process for worker in self._workers]:
            with contextlib.suppress(ValueError):  # its thread has reaped it
                if process is not None:
                    process.process.kill()

    def __enter__(self) -> Self:
        """Return the pool; workers start with their first run."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker; no thread executes a run."""
        for worker in self._workers:
            if worker.process is not None:
                worker.process.close()


class _Worker:
    """A process that executes runs one after the other; a new one follows a dead one."""

    def __init__(self, run: RunFunction, threads: int, log: Path) -> None:
        self._run, self._threads, self._log = run, threads, log
        self.process: WorkerProcess | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        with disk_errors(f"making {self._log.parent}"):
            self._log.parent.mkdir(exist_ok=True)
        self._log_begin = self._log.stat().st_size if self._log.exists() else 0
        self.process = WorkerProcess(
            _main, (str(self._log), self._run), name="mlxhog-candidate", threads=self._threads,
            daemon=None, pipe=True,
        )  # fmt: skip

    def execute(self, config: RunConfig, rungs: tuple[int, ...], should_prune: Prune) -> RunRecord:
        process, began_s = self.process, time.monotonic()
        assert process is not None, "it is started"
        try:
            process.pipe.send((config, rungs))
            while not isinstance(message := process.pipe.recv(), RunRecord):
                process.pipe.send(should_prune(message))
            return message
        except (EOFError, OSError):
            self.process = None
            death = process.reap(None)
            process.close()
        if death.signal_name == "SIGKILL":
            raise Lost("was killed (SIGKILL), by a user or for lack of memory")
        verb = f"crashed ({death.signal_name})" if death.signal_name else f"left ({death})"
        reason = f"its process {verb}: {self._last_words()}"
        return config.record("failed", seconds=time.monotonic() - began_s, reason=reason)

    def _last_words(self) -> str:
        """The reason of a death in the log: the name of a fatal error, else the last line."""
        lines = ["it left no log"]
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            lines = last_lines(file, self._log_begin)
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines)[-1][:REASON_CHARACTERS]


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
