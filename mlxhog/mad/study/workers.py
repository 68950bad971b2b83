"""Workers that execute the runs of a study, one run at a time each, and the messages about runs.

A worker sends ("ready", host), then about its run any number of ("beat", None), ("point", point)
and ("rung", point), which waits for an answer, and at last ("end", result); or ("spent", result) if
the process cannot be used again.

Silent workers are ended, dead ones replaced. If a worker dies by its own fault (a crash, an exit),
its run has failed. If it was killed from outside, the run is lost and the scheduler may repeat it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, Self

from mlxhog.arena.process import WatchedTime
from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.base.durable import disk_errors
from mlxhog.base.quantities import format_bytes
from mlxhog.errors import MlxhogError, WorkerFailed
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunResult, failed

START_S = 120.0
"""Seconds for the start of a process, which takes long on a busy machine."""
MOST_FAILED_STARTS = 3
TICK_S = 0.5
BEAT_S = 0.5
DUMP_S = 0.3
REASON_CHARACTERS = 500


class RunFunction(Protocol):
    """A function that executes a run, such as `candidate.train`; workers import it."""

    def __call__(
        self, config: RunConfig, *, callbacks: Callbacks, rungs: tuple[int, ...]
    ) -> RunResult:
        """Execute a run to its end."""


@dataclass(frozen=True)
class Event:
    """A message about the run of a key.

    Its kind is "point", "rung" (the run waits for `Executor.answer`), "end", or "lost" (its worker
    was killed); its value a `Point`, a `RunResult`, or the reason of the loss.
    """

    key: str
    kind: str
    value: Any
    host: str = ""


class Executor(Protocol):
    """Executes runs, a few at once; `Pool` does on this machine, `ray.RayPool` on a cluster."""

    def free(self) -> int:
        """Return the number of runs that can begin at once."""

    def submit(self, run: RunConfig, rungs: tuple[int, ...]) -> str:
        """Begin a run that may be pruned at some steps; return the name of its worker."""

    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""

    def events(self, timeout_s: float) -> list[Event]:
        """Wait for events, at most `timeout_s`; end silent runs.

        Raises:
            WorkerFailed: workers cannot start; the message has the reason.
        """


@dataclass
class _Seat:
    """A worker's place in the pool, and its run."""

    name: str
    process: WorkerProcess | None = None
    log_begin: int = 0
    key: str | None = None
    host: str | None = None  # None before it is ready
    began_s: float = 0.0
    heard_s: float = 0.0  # in watched time


class Pool:
    """Processes of this machine; none outlives the `with` block.

    Args:
        run: executes one run.
        parallel: processes.
        threads: of each one's libraries.
        logs: directory for their logs.
        silence_s: time without a sign of life after which a run is ended and has failed.
        memory_limit: most resident bytes of a process; None for no limit.
    """

    def __init__(
        self,
        run: RunFunction,
        *,
        parallel: int,
        threads: int,
        logs: Path,
        silence_s: float,
        memory_limit: int | None = None,
    ) -> None:
        self._seats = [_Seat(str(number + 1)) for number in range(parallel)]
        self._run, self._threads, self._logs = run, threads, logs
        self._silence_s, self._memory_limit = silence_s, memory_limit
        self._failed_starts, self._watched = 0, WatchedTime()

    def free(self) -> int:
        """Return the number of idle workers."""
        return sum(seat.key is None for seat in self._seats)

    def submit(self, run: RunConfig, rungs: tuple[int, ...]) -> str:
        """Begin a run, preferably in a running worker; return the name of the worker."""
        idle = [seat for seat in self._seats if seat.key is None]
        seat = next((seat for seat in idle if seat.process is not None), idle[0])
        process = self._start(seat) if seat.process is None else seat.process
        seat.key, seat.began_s, seat.heard_s = run.key(), time.monotonic(), self._watched.look()
        with contextlib.suppress(OSError):  # it is dead, as `events` will report
            process.pipe.send((run, rungs))
        return seat.name

    def _start(self, seat: _Seat) -> WorkerProcess:
        log = self._log(seat)
        with disk_errors(f"making {log.parent}"):
            log.parent.mkdir(exist_ok=True)
        seat.log_begin = log.stat().st_size if log.exists() else 0
        seat.host, seat.process = None, WorkerProcess(
            _main,
            (str(log), self._run, self._memory_limit),
            name="mlxhog-candidate",
            threads=self._threads,
            daemon=None,
            pipe=True,
        )  # fmt: skip
        return seat.process

    def _log(self, seat: _Seat) -> Path:
        return self._logs / f"worker-{seat.name}.log"

    def answer(self, key: str, prune: bool) -> None:
        """Tell a run that waits at a rung whether it is pruned."""
        for seat in self._seats:
            if key == seat.key and seat.process is not None:
                with contextlib.suppress(OSError):
                    seat.process.pipe.send(prune)

    def events(self, timeout_s: float) -> list[Event]:
        """Wait for events, at most `timeout_s`; end silent workers.

        Raises:
            WorkerFailed: workers cannot start; the message has the reason.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            events = [event for seat in self._seats for event in self._listen(seat)]
            left_s = deadline - time.monotonic()
            if events or left_s <= 0:
                return events
            pipes = [seat.process.pipe for seat in self._seats if seat.process is not None]
            connection.wait(pipes, min(left_s, TICK_S))

    def _listen(self, seat: _Seat) -> list[Event]:
        events: list[Event] = []
        try:
            while seat.process is not None and seat.process.pipe.poll():
                word, value = seat.process.pipe.recv()
                seat.heard_s = self._watched.look()
                if word == "ready":
                    seat.host, self._failed_starts = value, 0
                if word == "spent":
                    self._end(seat)
                if word in ("point", "rung"):
                    events += self._event(seat, word, value)
                if word in ("end", "spent"):
                    events += self._event(seat, "end", value)
        except (EOFError, OSError):
            return events or self._died(seat)
        return events or self._check_silence(seat)

    def _event(self, seat: _Seat, kind: str, value: object) -> list[Event]:
        """Return an event of a worker's run, if it has one; the run may end by it."""
        key = seat.key
        if kind in ("end", "lost"):
            seat.key = None
        return [] if key is None else [Event(key, kind, value, seat.host or "")]

    def _died(self, seat: _Seat) -> list[Event]:
        assert seat.process is not None
        death, seat.process = seat.process, None
        name = death.reap(None).signal_name
        killed = name == "SIGKILL"
        how = f"crashed ({name})" if name else f"left ({death.reap()})"
        how = f"{how}: {self._last_words(seat)}"
        if killed:
            how = "was killed (SIGKILL), by a user or for lack of memory"
        death.close()
        return self._gone(seat, how, lost=killed)

    def _gone(self, seat: _Seat, how: str, *, lost: bool) -> list[Event]:
        """Return the end of a dead worker's run: lost, or failed by its own fault."""
        if seat.host is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise WorkerFailed(
                    f"{self._failed_starts} workers in a row died while they started; the last "
                    f"{how}"
                )
        if lost or seat.host is None:
            return self._event(seat, "lost", how)
        seconds = time.monotonic() - seat.began_s
        return self._event(seat, "end", failed(f"its process {how}", seconds=seconds))

    def _check_silence(self, seat: _Seat) -> list[Event]:
        if seat.key is None or seat.process is None:
            return []
        silent_s, allowed_s = self._watched.look() - seat.heard_s, self._silence_s
        if seat.host is None:
            allowed_s = max(START_S, allowed_s)
        if silent_s <= allowed_s:
            return []
        if seat.host is None:
            how = f"did not start within {silent_s:.0f} s"
        else:
            how = f"gave no sign of life for {allowed_s:g} s and was ended"
            os.kill(seat.process.pid, signal.SIGUSR1)  # it writes its stack into its log
            time.sleep(DUMP_S)
        self._end(seat)
        return self._gone(seat, how, lost=False)

    def _last_words(self, seat: _Seat) -> str:
        """The reason of a death in the log: the name of a fatal error, else the last line."""
        try:
            with self._log(seat).open("rb") as file:
                lines = last_lines(file, seat.log_begin)
        except OSError:
            return "it left no log"
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines)[-1][:REASON_CHARACTERS]

    def _end(self, seat: _Seat) -> None:
        if seat.process is not None:
            seat.process.close()
            seat.process = None

    def __enter__(self) -> Self:
        """Return the pool; workers start with their first run."""
        return self

    def __exit__(self, *_: object) -> None:
        """End every worker."""
        for seat in self._seats:
            self._end(seat)
            seat.key = None


# -- in the worker ---------------------------------------------------------------------------------

Send = Callable[[str, object], None]


class Messages(Callbacks):
    """Callbacks that send messages, from any thread, and wait for the answer at a rung."""

    def __init__(self, send: Send, answer: Callable[[], bool]) -> None:
        self._send, self._answer, self._next_s = send, answer, 0.0

    def beat(self) -> None:
        """Send a sign of life, twice a second at most."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + BEAT_S
            self._send("beat", None)

    def point(self, point: Point) -> None:
        """Send an evaluation."""
        self._send("point", point)

    def should_prune(self, point: Point) -> bool:
        """Ask the scheduler, and wait for the answer."""
        self._send("rung", point)
        return self._answer()


def _main(pipe: Connection, log: str, run: RunFunction, memory_limit: int | None) -> None:
    """Entry point of the process: execute runs until the parent closes the pipe, or dies."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    sending = threading.Lock()

    def send(word: str, value: object) -> None:
        with sending:
            pipe.send((word, value))

    if memory_limit is not None:
        limit_memory(memory_limit, send)
    with contextlib.suppress(EOFError, OSError):
        send("ready", platform.node())
        while True:
            config, rungs = pipe.recv()
            send(*attempt(run, config, Messages(send, lambda: bool(pipe.recv())), rungs))
    os._exit(0)  # without waiting for threads of a framework


def attempt(
    run: RunFunction, config: RunConfig, callbacks: Callbacks, rungs: tuple[int, ...]
) -> tuple[str, RunResult]:
    """Return ("end", result) of a run, also if it raises; "spent" if it lacked memory."""
    began_s = time.monotonic()
    try:
        return "end", run(config, callbacks=callbacks, rungs=rungs)
    except (Exception, SystemExit) as error:
        traceback.print_exc()  # into the worker's log
        word = "spent" if _is_lack_of_memory(error) else "end"
        return word, failed(explain(error), seconds=time.monotonic() - began_s)


_NO_MEMORY = ("can't allocate memory", "not enough memory", "unable to allocate", "bad_alloc")


def explain(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())[:REASON_CHARACTERS]
    if _is_lack_of_memory(error):
        return f"needs more memory than there is: {text or type(error).__name__}"
    if isinstance(error, SystemExit):
        return f"left with exit code {error.code}"
    return text if isinstance(error, MlxhogError) else f"{type(error).__name__}: {text}"


def _is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or a framework reports a lack of memory."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(text in words for text in _NO_MEMORY)


MEMORY_POLL_S = 0.1
MARGIN = 1.25
MARGIN_BYTES = 256 << 20
_STATM = Path("/proc/self/statm")


def limit_memory(n_bytes: int, send: Send) -> None:
    """Send ("spent", result) once as soon as more than `n_bytes` are resident.

    On Linux the kernel also refuses memory some way above that: for one allocation that is too
    large, and for code that holds Python's lock while it allocates. macOS has no such limit.
    """
    if sys.platform == "linux":
        backstop = int(n_bytes * MARGIN) + MARGIN_BYTES
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            backstop = min(backstop, hard)
        with contextlib.suppress(ValueError, OSError):  # a container may forbid it
            resource.setrlimit(resource.RLIMIT_DATA, (backstop, hard))
    began_s = time.monotonic()

    def look() -> None:
        while (used := resident_bytes()) <= n_bytes:
            time.sleep(MEMORY_POLL_S)
        reason = f"needs more than the memory limit: {format_bytes(used)} and rising"
        send("spent", failed(reason, seconds=time.monotonic() - began_s))

    threading.Thread(target=look, daemon=True, name="memory-watch").start()


def resident_bytes() -> int:
    """Return the resident memory of this process: now on Linux, the peak on macOS."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
