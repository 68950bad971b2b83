"""Workers that execute the runs of a study, one run at a time each, and the messages about runs.

A worker sends any number of ("rung", point), each of which waits for an answer, and at last ("end",
record). If it dies by its own fault (a crash, an exit), its run has failed. If it was killed from
outside, the run is lost, and the scheduler repeats it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.base.durable import disk_errors
from mlxhog.errors import MlxhogError
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunRecord

REASON_CHARACTERS = 500

RunFunction = Callable[..., RunRecord]
"""Executes a run, as `candidate.train(config, callbacks=.., rungs=..)`; workers import it."""

Event = tuple[RunConfig, str, Any]
"""A run, and what it reports: "rung" and a `Point` (it waits for `answer`), "end" and its record,
or "lost" and how its worker was killed."""

Message = tuple[str, str, Any]
"""As an event, by the key of the run; also "died", by the fault of its worker, and how."""


class Executor(ABC):
    """Executes runs, a few at once; `Pool` does on this machine, `ray.RayPool` on a cluster.

    Attributes:
        parallel: runs at once.
        runs: those in progress and when they began, by their keys.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self.runs: dict[str, tuple[RunConfig, float]] = {}

    def free(self) -> int:
        """Return the number of runs that can begin at once."""
        return self.parallel - len(self.runs)

    def submit(self, run: RunConfig, rungs: tuple[int, ...]) -> None:
        """Begin a run that may be pruned at some steps."""
        self.runs[run.key()] = run, time.monotonic()
        self._begin(run, rungs)

    def events(self, timeout_s: float) -> list[Event]:
        """Return the events of runs; waits for one, at most `timeout_s`."""
        events = list[Event]()
        for key, word, value in self._messages(timeout_s):
            if key not in self.runs:
                continue
            run, began_s = self.runs[key]
            if word != "rung":
                del self.runs[key]
            if word == "died":
                seconds, reason = time.monotonic() - began_s, f"its process {value}"
                word, value = "end", run.record("failed", seconds=seconds, reason=reason)
            events.append((run, word, value))
        return events

    @abstractmethod
    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""

    @abstractmethod
    def _begin(self, run: RunConfig, rungs: tuple[int, ...]) -> None:
        """Begin a run."""

    @abstractmethod
    def _messages(self, timeout_s: float) -> Iterable[Message]:
        """Wait for messages, at most `timeout_s` or a little."""


class Pool(Executor):
    """Processes of this machine; none outlives the `with` block.

    Args:
        run: executes one run.
        parallel: processes; one starts with its first run, and executes many.
        threads: of each one's libraries.
        logs: directory for their logs.
    """

    def __init__(self, run: RunFunction, *, parallel: int, threads: int, logs: Path) -> None:
        super().__init__(parallel)
        self._run, self._threads, self._logs = run, threads, logs
        self._processes: dict[int, WorkerProcess] = {}  # by their numbers, from 1
        self._busy: dict[int, str] = {}  # worker -> key of its run
        self._log_begins: dict[int, int] = {}  # of its newest process, in bytes

    def _begin(self, run: RunConfig, rungs: tuple[int, ...]) -> None:
        worker = next(number for number in itertools.count(1) if number not in self._busy)
        self._busy[worker] = run.key()
        if worker not in self._processes:
            log = self._log(worker)
            with disk_errors(f"making {log.parent}"):
                log.parent.mkdir(exist_ok=True)
            self._log_begins[worker] = log.stat().st_size if log.exists() else 0
            self._processes[worker] = WorkerProcess(
                _main, (str(log), self._run), name="mlxhog-candidate", threads=self._threads,
                daemon=None, pipe=True,
            )  # fmt: skip
        self._send(worker, (run, rungs))

    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""
        for worker, of in self._busy.items():
            if of == key:
                self._send(worker, prune)

    def _send(self, worker: int, value: object) -> None:
        with contextlib.suppress(OSError):  # it is dead, as `events` will report
            self._processes[worker].pipe.send(value)

    def _log(self, worker: int) -> Path:
        return self._logs / f"worker-{worker}.log"

    def _messages(self, timeout_s: float) -> Iterable[Message]:
        connection.wait([process.pipe for process in self._processes.values()], timeout_s)
        for worker, process in [*self._processes.items()]:
            key = self._busy.get(worker, "")
            try:
                while process.pipe.poll():
                    word, value = process.pipe.recv()
                    if word == "end":
                        del self._busy[worker]
                    yield key, word, value
            except (EOFError, OSError):
                self._busy.pop(worker, None)
                yield key, *self._death(worker)

    def _death(self, worker: int) -> tuple[str, str]:
        """Return how a worker died: "lost" if it was killed, or "died" by its own fault."""
        process = self._processes.pop(worker)
        death = process.reap(None)
        process.close()
        if death.signal_name == "SIGKILL":
            return "lost", "was killed (SIGKILL), by a user or for lack of memory"
        verb = f"crashed ({death.signal_name})" if death.signal_name else f"left ({death})"
        return "died", f"{verb}: {self._last_words(worker)}"

    def _last_words(self, worker: int) -> str:
        """The reason of a death in the log: the name of a fatal error, else the last line."""
        try:
            with self._log(worker).open("rb") as file:
                lines = last_lines(file, self._log_begins[worker])
        except OSError:
            return "it left no log"
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines)[-1][:REASON_CHARACTERS]

    def __enter__(self) -> Self:
        """Return the pool; workers start with their first run."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()
        self.runs.clear()


# -- in the worker ---------------------------------------------------------------------------------


class AtRungs(Callbacks):
    """Callbacks that send a message at each rung, and wait for the answer."""

    def __init__(self, send: Callable[[str, object], None], answer: Callable[[], bool]) -> None:
        self._send, self._answer = send, answer

    def should_prune(self, point: Point) -> bool:
        """Ask the scheduler, and wait for the answer."""
        self._send("rung", point)
        return self._answer()


def _main(pipe: Connection, log: str, run: RunFunction) -> None:
    """Entry point of the process: execute runs until the parent closes the pipe, or dies."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    callbacks = AtRungs(lambda *message: pipe.send(message), lambda: bool(pipe.recv()))
    with contextlib.suppress(EOFError, OSError):
        while True:
            config, rungs = pipe.recv()
            pipe.send(("end", attempt(run, config, callbacks, rungs)))
    os._exit(0)  # without waiting for threads of a framework


def attempt(
    run: RunFunction, config: RunConfig, callbacks: Callbacks, rungs: tuple[int, ...]
) -> RunRecord:
    """Return the record of a run, also if it raises; the traceback is in the worker's log."""
    began_s = time.monotonic()
    try:
        return run(config, callbacks=callbacks, rungs=rungs)
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
