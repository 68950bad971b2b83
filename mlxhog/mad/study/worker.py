"""A worker process of a study, which executes runs; and its start on this machine.

It sends ("ready", host), then for each run any number of ("beat",), ("point", point) and
("rung", point), and at last ("end", result), or ("spent", result) if the process cannot be used
again.
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
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlxhog.arena.worker_pool import WorkerProcess, last_lines
from mlxhog.errors import MlxhogError
from mlxhog.files.durable import disk_errors
from mlxhog.files.quantities import format_bytes
from mlxhog.mad.run import Callbacks, Point, RunResult, failed
from mlxhog.mad.study.pool import Pool, RunFunction, Task, WorkerDied

BEAT_S = 0.5
REASON_CHARACTERS = 500
_NO_MEMORY = ("can't allocate memory", "not enough memory", "unable to allocate", "bad_alloc")


class Channel:
    """A worker's pipe to its parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message, from any thread."""
        with self._sending:
            self._pipe.send(message)

    def receive(self) -> Any:
        """Wait for a `Task`, the answer at a rung, or None, which ends the worker."""
        return self._pipe.recv()


class ChannelCallbacks(Callbacks):
    """Callbacks that send messages over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._next_s = channel, 0.0

    def beat(self) -> None:
        """Send a sign of life, twice a second at most."""
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + BEAT_S
            self._channel.send(("beat",))

    def point(self, point: Point) -> None:
        """Send an evaluation."""
        self._channel.send(("point", point))

    def should_prune(self, point: Point) -> bool:
        """Ask the parent, and wait for the answer."""
        self._channel.send(("rung", point))
        return bool(self._channel.receive())


def serve(channel: Channel, run: RunFunction, memory_limit: int | None) -> None:
    """Execute runs until None comes; at most `memory_limit` bytes may be resident."""
    began_s = time.monotonic()

    def over(used: int) -> None:
        reason = f"needs more than the memory limit: {format_bytes(used)} and rising"
        seconds = time.monotonic() - began_s
        channel.send(("spent", failed(reason, seconds=seconds)))

    if memory_limit is not None:
        limit_memory(memory_limit, over)
    channel.send(("ready", platform.node()))
    while True:
        task = channel.receive()
        if task is None:
            return
        began_s = time.monotonic()
        channel.send(_attempt(run, task, ChannelCallbacks(channel)))


def _attempt(run: RunFunction, task: Task, callbacks: Callbacks) -> tuple[str, RunResult]:
    """Return the result of a run, also if it raises."""
    began_s = time.monotonic()
    try:
        return "end", run(task.config, callbacks=callbacks, rungs=task.rungs)
    except (Exception, SystemExit) as error:
        traceback.print_exc()  # into the worker's log
        word = "spent" if is_lack_of_memory(error) else "end"
        return word, failed(explain(error), seconds=time.monotonic() - began_s)


def explain(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())[:REASON_CHARACTERS]
    if is_lack_of_memory(error):
        return f"needs more memory than there is: {text or type(error).__name__}"
    if isinstance(error, SystemExit):
        return f"left with exit code {error.code}"
    return text if isinstance(error, MlxhogError) else f"{type(error).__name__}: {text}"


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or a framework reports a lack of memory."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(text in words for text in _NO_MEMORY)


MEMORY_POLL_S = 0.1
MARGIN = 1.25
MARGIN_BYTES = 256 << 20
_STATM = Path("/proc/self/statm")


def limit_memory(n_bytes: int, over: Callable[[int], None]) -> None:
    """Call `over` once with the resident bytes as soon as they exceed `n_bytes`.

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

    def look() -> None:
        while (used := resident_bytes()) <= n_bytes:
            time.sleep(MEMORY_POLL_S)
        over(used)

    threading.Thread(target=look, daemon=True, name="memory-watch").start()


def resident_bytes() -> int:
    """Return the resident memory of this process: now on Linux, the peak on macOS."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


DUMP_S = 0.3


def local(
    run: RunFunction,
    *,
    parallel: int,
    threads: int,
    logs: Path,
    silence_s: float,
    memory_limit: int | None = None,
) -> Pool:
    """Return a pool of `parallel` workers on this machine; arguments as in `ray.cluster`."""

    def start_worker(number: int) -> Process:
        return Process(run, threads, logs / f"worker-{number + 1}.log", memory_limit)

    return Pool(parallel, start_worker, _wait, silence_s=silence_s)


def _wait(workers: Sequence[Process], timeout_s: float) -> None:
    connection.wait([worker.pipe for worker in workers], timeout_s)


class Process:
    """One spawned process; it may have children, and ends with its parent."""

    def __init__(self, run: RunFunction, threads: int, log: Path, memory_limit: int | None) -> None:
        with disk_errors(f"making {log.parent}"):
            log.parent.mkdir(exist_ok=True)
        self._log, self._log_begin = log, log.stat().st_size if log.exists() else 0
        self._process = WorkerProcess(
            _main,
            (str(log), run, memory_limit),
            name="mlxhog-candidate",
            threads=threads,
            daemon=None,
            pipe=True,
        )
        self.pipe = self._process.pipe

    def send(self, message: Task | bool) -> None:
        """Send a message; a dead process gets none."""
        with contextlib.suppress(OSError):  # it is dead, as `receive_all` will report
            self.pipe.send(message)

    def receive_all(self) -> list[tuple[Any, ...]]:
        """Return the new messages, without waiting."""
        messages = []
        try:
            while self.pipe.poll():
                messages.append(self.pipe.recv())
        except (EOFError, OSError):
            if not messages:
                raise self._death() from None
        return messages

    def _death(self) -> WorkerDied:
        death = self._process.reap(None)
        self._process.close()
        if death.signal_name == "SIGKILL":
            return WorkerDied("was killed (SIGKILL), by a user or for lack of memory", killed=True)
        how = f"crashed ({death.signal_name})" if death.signal_name else f"left ({death})"
        return WorkerDied(f"{how}: {self._last_words()}", killed=False)

    def _last_words(self) -> str:
        """The reason of a death in the log: the name of a fatal error, else the last line."""
        try:
            with self._log.open("rb") as file:
                lines = last_lines(file, self._log_begin)
        except OSError:
            return "it left no log"
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines)[-1][:REASON_CHARACTERS]

    def end(self, *, dump: bool = False) -> None:
        """Kill the process; with `dump` it first writes its stack."""
        if dump:
            self.dump()
        self._process.close()

    def dump(self) -> None:
        """Let the process write the stack of every thread into its log."""
        os.kill(self._process.pid, signal.SIGUSR1)  # not reaped yet, so the id is its own
        time.sleep(DUMP_S)


def _main(pipe: Connection, log: str, run: RunFunction, memory_limit: int | None) -> None:
    """Entry point of the spawned process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    with contextlib.suppress(EOFError, OSError):  # the parent died
        serve(Channel(pipe), run, memory_limit)
    os._exit(0)  # without waiting for threads of a framework
