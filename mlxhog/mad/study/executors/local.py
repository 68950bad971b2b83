"""The executor of one machine: spawned processes, used for many runs each."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlxhog.files.durable import disk_errors
from mlxhog.machine.processes import follow_parent, spawn
from mlxhog.mad.study.executors import serve
from mlxhog.mad.study.executors.pool import Died, Pool
from mlxhog.mad.study.executors.protocol import RunFunction, Task

DUMP_S = 0.3
_WORDS_BYTES = 4096


def local(
    run: RunFunction,
    *,
    parallel: int,
    threads: int,
    logs: Path,
    silence_s: float,
    memory_limit: int | None = None,
) -> Pool:
    """Return an executor that runs `parallel` tasks at once on this machine.

    Args:
        run: executes one run; pickled, so an importable function.
        parallel: processes.
        threads: of each of them.
        logs: directory for what workers print.
        silence_s: a run that gives no sign of life for so long is ended and has failed.
        memory_limit: bytes that a worker may have resident; None for no limit.
    """

    def hire(number: int) -> Process:
        return Process(run, threads, logs / f"worker-{number + 1}.log", memory_limit)

    return Pool(parallel, hire, _wait, silence_s=silence_s)


def _wait(workers: Sequence[Process], timeout_s: float) -> None:
    connection.wait([worker.pipe for worker in workers], timeout_s)


class Process:
    """One spawned process; it may have children of its own, and leaves when its parent does."""

    def __init__(self, run: RunFunction, threads: int, log: Path, memory_limit: int | None) -> None:
        with disk_errors(f"making {log.parent}"):
            log.parent.mkdir(exist_ok=True)
        self._log, self._log_begin = log, log.stat().st_size if log.exists() else 0
        self.pipe, theirs = get_context("spawn").Pipe()
        self._process = spawn(
            _main,
            (theirs, str(log), run, memory_limit),
            name="mlxhog-candidate",
            threads=threads,
        )
        theirs.close()

    def tell(self, message: Task | bool) -> None:
        """See `Worker.tell`."""
        try:
            self.pipe.send(message)
        except OSError:
            pass  # it is dead, as `heard` will say

    def heard(self) -> list[tuple[Any, ...]]:
        """See `Worker.heard`."""
        found = []
        try:
            while self.pipe.poll():
                found.append(self.pipe.recv())
        except (EOFError, OSError):
            if not found:
                raise self._death() from None
        return found

    def _death(self) -> Died:
        self._process.join()
        code = self._process.exitcode or 0
        self._close()
        if code == -signal.SIGKILL:
            return Died("was killed (SIGKILL), by somebody or because memory ran out", killed=True)
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"left (exit code {code})"
        return Died(f"{how}: {self._last_words()}", killed=False)

    def _last_words(self) -> str:
        """What the log says of a death: of a fatal error its name, else the last line."""
        with self._log.open("rb") as file:
            file.seek(max(self._log_begin, file.seek(0, os.SEEK_END) - _WORDS_BYTES))
            lines = [line for line in file.read().decode(errors="replace").split("\n") if line]
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines or ["it left no message"])[-1][: serve.REASON_CHARACTERS]

    def end(self, *, dump: bool = False) -> None:
        """See `Worker.end`."""
        if dump:
            self.dump()
        self._process.kill()
        self._process.join()
        self._close()

    def dump(self) -> None:
        """Let the process write into its log where it is, in every thread."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGUSR1)  # not reaped yet, so the number is its own
        time.sleep(DUMP_S)

    def _close(self) -> None:
        self._process.close()
        self.pipe.close()


class _Pipe:
    """A `Channel` over a pipe to the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()

    def send(self, message: tuple[Any, ...]) -> None:
        """See `Channel.send`."""
        with self._sending:
            self._pipe.send(message)

    def receive(self) -> Any:
        """See `Channel.receive`."""
        return self._pipe.recv()


def _main(pipe: Connection, log: str, run: RunFunction, memory_limit: int | None) -> None:
    """Entry point of the spawned process."""
    follow_parent()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    try:
        serve.serve(_Pipe(pipe), run, memory_limit)
    except (EOFError, OSError):
        pass  # the parent is gone
    os._exit(0)  # without waiting for threads of a framework
