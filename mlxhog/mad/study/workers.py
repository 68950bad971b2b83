"""Workers that execute the runs of a study, one run at a time each, and the messages about runs.

A worker sends ("ready", host), then about its run any number of ("beat", None) and of
("rung", point), which waits for an answer, and at last ("end", result).

Silent workers are ended, dead ones replaced. If a worker dies by its own fault (a crash, an exit),
its run has failed. If it was killed from outside, the run is lost and the scheduler may repeat it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self

from mlxhog.arena.process import WatchedTime
from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.base.durable import disk_errors
from mlxhog.errors import MlxhogError, WorkerFailed
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunResult, failed

START_S = 120.0
"""Seconds for the start of a process, which takes long on a busy machine."""
MOST_FAILED_STARTS = 3
TICK_S = 0.5
BEAT_S = 0.5
REASON_CHARACTERS = 500

RunFunction = Callable[..., RunResult]
"""Executes a run, as `candidate.train(config, callbacks=.., rungs=..)`; workers import it."""


@dataclass
class Running:
    """A run in progress."""

    plan: RunConfig  # of the run
    worker: str  # its name, a number from 1
    began_s: float  # when it began, monotonic
    heard_s: float = 0.0  # its last sign of life, in watched time
    host: str = ""  # of the worker; "" until it is ready

    def failed(self, how: str) -> RunResult:
        """Return the result of the run if its process ended so."""
        return failed(f"its process {how}", seconds=time.monotonic() - self.began_s)


class Event(NamedTuple):
    """A message about a run: "rung" (it waits for `answer`), "end", or "lost".

    The value is a `Point`, a `RunResult`, or how its worker was killed.
    """

    running: Running
    kind: str
    value: Any


class Executor(ABC):
    """Executes runs, a few at once; `Pool` does on this machine, `ray.RayPool` on a cluster.

    Args:
        parallel: runs at once.
        silence_s: time without a sign of life after which a run is ended and has failed.

    Attributes:
        runs: those in progress, by their keys.
    """

    def __init__(self, parallel: int, silence_s: float) -> None:
        self._workers = [str(number + 1) for number in range(parallel)]
        self.runs: dict[str, Running] = {}
        self._silence_s, self._watched = silence_s, WatchedTime()

    def free(self) -> int:
        """Return the number of runs that can begin at once."""
        return len(self._workers) - len(self.runs)

    def submit(self, run: RunConfig, rungs: tuple[int, ...]) -> None:
        """Begin a run that may be pruned at some steps."""
        busy = {running.worker for running in self.runs.values()}
        worker = next(name for name in self._workers if name not in busy)
        running = Running(run, worker, time.monotonic(), self._watched.look())
        self.runs[run.key()] = running
        self._begin(running, rungs)

    def events(self, timeout_s: float) -> list[Event]:
        """Wait for events, at most `timeout_s`; end silent runs.

        Raises:
            WorkerFailed: workers cannot start; the message has the reason.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            events = [e for message in self._messages(left_s) for e in self._event(*message)]
            events += [event for key in [*self.runs] for event in self._check_silence(key)]
            if events or time.monotonic() >= deadline:
                return events

    def _event(self, key: str, word: str, value: Any) -> list[Event]:
        """Return the event of a message, if it is one; the run may end by it."""
        if (running := self.runs.get(key)) is None:
            return []
        running.heard_s = self._watched.look()
        if word == "ready":
            running.host = str(value)
        if word in ("ready", "beat"):
            return []
        if word in ("end", "lost"):
            del self.runs[key]
        return [Event(running, word, value)]

    def _check_silence(self, key: str) -> list[Event]:
        running = self.runs[key]
        allowed_s = self._silence_s if running.host else max(START_S, self._silence_s)
        if self._watched.look() - running.heard_s <= allowed_s:
            return []
        self._kill(key)
        if not running.host:
            return self._event(key, "lost", f"did not start within {allowed_s:g} s")
        how = f"gave no sign of life for {allowed_s:g} s and was ended"
        return self._event(key, "end", running.failed(how))

    @abstractmethod
    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""

    @abstractmethod
    def _begin(self, running: Running, rungs: tuple[int, ...]) -> None:
        """Begin a run in its worker."""

    @abstractmethod
    def _messages(self, timeout_s: float) -> Iterable[tuple[str, str, object]]:
        """Wait for messages, at most `timeout_s` or a little; yield (key, word, value)."""

    @abstractmethod
    def _kill(self, key: str) -> None:
        """Kill the process of a run."""


class Pool(Executor):
    """Processes of this machine; none outlives the `with` block.

    Args:
        run: executes one run.
        parallel: processes; one starts with its first run.
        threads: of each one's libraries.
        logs: directory for their logs.
        silence_s: time without a sign of life after which a run is ended and has failed.
    """

    def __init__(
        self, run: RunFunction, *, parallel: int, threads: int, logs: Path, silence_s: float
    ) -> None:
        super().__init__(parallel, silence_s)
        self._run, self._threads = run, threads
        self._logs, self._log_begins = logs, dict[str, int]()
        self._processes: dict[str, WorkerProcess] = {}
        self._ready: set[str] = set()
        self._failed_starts = 0

    def _begin(self, running: Running, rungs: tuple[int, ...]) -> None:
        worker = running.worker
        if worker not in self._processes:
            self._processes[worker] = self._start(worker)
        elif worker in self._ready:
            running.host = platform.node()
        with contextlib.suppress(OSError):  # it is dead, as `events` will report
            self._processes[worker].pipe.send((running.plan, rungs))

    def _log(self, worker: str) -> Path:
        return self._logs / f"worker-{worker}.log"

    def _start(self, worker: str) -> WorkerProcess:
        log = self._log(worker)
        with disk_errors(f"making {log.parent}"):
            log.parent.mkdir(exist_ok=True)
        self._log_begins[worker] = log.stat().st_size if log.exists() else 0
        job, name = (str(log), self._run), "mlxhog-candidate"
        return WorkerProcess(_main, job, name=name, threads=self._threads, daemon=None, pipe=True)

    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""
        if key in self.runs:
            with contextlib.suppress(OSError):
                self._processes[self.runs[key].worker].pipe.send(prune)

    def _messages(self, timeout_s: float) -> Iterable[tuple[str, str, object]]:
        pipes = [process.pipe for process in self._processes.values()]
        connection.wait(pipes, min(timeout_s, TICK_S))
        keys = {running.worker: key for key, running in self.runs.items()}
        for worker, process in [*self._processes.items()]:
            key = keys.get(worker, "")
            try:
                while process.pipe.poll():
                    word, value = process.pipe.recv()
                    if word == "ready":
                        self._ready.add(worker)
                        self._failed_starts = 0
                    yield key, word, value
            except (EOFError, OSError):
                yield self._died(worker, key)

    def _died(self, worker: str, key: str) -> tuple[str, str, object]:
        """Return the end of a dead worker's run: lost, or failed by its own fault."""
        ready, death = worker in self._ready, self._processes[worker].reap(None)
        killed = death.signal_name == "SIGKILL"
        if killed:
            how = "was killed (SIGKILL), by a user or for lack of memory"
        else:
            verb = f"crashed ({death.signal_name})" if death.signal_name else f"left ({death})"
            how = f"{verb}: {self._last_words(worker)}"
        self._close(worker)
        if not ready:
            self._count_failed_start(how)
        if killed or not ready or key not in self.runs:
            return key, "lost", how
        return key, "end", self.runs[key].failed(how)

    def _count_failed_start(self, how: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MOST_FAILED_STARTS:
            raise WorkerFailed(
                f"{self._failed_starts} workers in a row died while they started; the last {how}"
            )

    def _last_words(self, worker: str) -> str:
        """The reason of a death in the log: the name of a fatal error, else the last line."""
        try:
            with self._log(worker).open("rb") as file:
                lines = last_lines(file, self._log_begins[worker])
        except OSError:
            return "it left no log"
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines)[-1][:REASON_CHARACTERS]

    def _kill(self, key: str) -> None:
        worker = self.runs[key].worker
        if worker not in self._ready:
            self._count_failed_start("did not start in time")
        self._close(worker)

    def _close(self, worker: str) -> None:
        self._processes.pop(worker).close()
        self._ready.discard(worker)

    def __enter__(self) -> Self:
        """Return the pool; workers start with their first run."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker."""
        for worker in [*self._processes]:
            self._close(worker)
        self.runs.clear()


# -- in the worker ---------------------------------------------------------------------------------


class Messages(Callbacks):
    """Callbacks that send messages, from any thread, and wait for the answer at a rung."""

    def __init__(self, send: Callable[[str, object], None], answer: Callable[[], bool]) -> None:
        self._send, self._answer, self._next_s = send, answer, 0.0

    def beat(self) -> None:
        """Send a sign of life, twice a second at most."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + BEAT_S
            self._send("beat", None)

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
    sending = threading.Lock()

    def send(word: str, value: object) -> None:
        with sending:
            pipe.send((word, value))

    with contextlib.suppress(EOFError, OSError):
        send("ready", platform.node())
        while True:
            config, rungs = pipe.recv()
            send("end", attempt(run, config, Messages(send, lambda: bool(pipe.recv())), rungs))
    os._exit(0)  # without waiting for threads of a framework


def attempt(
    run: RunFunction, config: RunConfig, callbacks: Callbacks, rungs: tuple[int, ...]
) -> RunResult:
    """Return the result of a run, also if it raises; the traceback is in the worker's log."""
    began_s = time.monotonic()
    try:
        return run(config, callbacks=callbacks, rungs=rungs)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return failed(explain(error), seconds=time.monotonic() - began_s)


def explain(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())[:REASON_CHARACTERS]
    if isinstance(error, SystemExit):
        return f"left with exit code {error.code}"
    return text if isinstance(error, MlxhogError) else f"{type(error).__name__}: {text}"
