"""Worker processes, alone or in a pool: spawn, watch, end and reap them.

None outlives its parent: it watches the parent from its start (`processes.SpawnedCall`), and is
killed when the parent's interpreter exits. The locks and slots of a dead process are freed only
after `waitpid` has returned it.
"""

import atexit
import contextlib
import os
import signal
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing import Pipe, connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, Protocol

from mlxhog.base import interrupts
from mlxhog.base.processes import FAULT_EXIT_CODE, SpawnedCall, end_spawning, spawning
from mlxhog.base.resources import memory_limit, oom_kills, says_out_of_memory

_TAIL_BYTES = 4096  # last bytes of a process's output, which may explain its death
_NOTED_WITHIN_S = 10.0  # an exit code that another thread collected is there long before

_processes: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
"""The processes that were spawned here and are not reaped."""


@dataclass(frozen=True)
class Death:
    """How a process ended: its exit code, or -n if signal n killed it."""

    code: int
    was_asked_for: bool = field(default=False, compare=False)  # this process has killed it
    lacked_memory: bool = field(default=False, compare=False)  # as the kernel counts its kills

    @property
    def is_fault(self) -> bool:
        """Whether it ended by an error that a restart would repeat (`processes.FAULTS`)."""
        return self.code == FAULT_EXIT_CODE

    @property
    def signal_name(self) -> str | None:
        """The signal that killed it; None if it exited."""
        return signal.Signals(-self.code).name if self.code < 0 else None

    def __str__(self) -> str:
        """Format it.

        >>> str(Death(-9)), str(Death(-9, was_asked_for=True)), str(Death(3))
        ('signal SIGKILL, perhaps for lack of memory', 'signal SIGKILL', 'exit code 3')
        """
        if self.code >= 0:
            return f"exit code {self.code}"
        return f"signal {self.signal_name}{self.suspicion}"

    @property
    def suspicion(self) -> str:
        """The likely reason for a SIGKILL that this process did not send; "" for other deaths."""
        if self.lacked_memory:
            return ", by the kernel for lack of memory"
        is_foreign = self.code == -signal.SIGKILL and not self.was_asked_for
        return ", perhaps for lack of memory" if is_foreign else ""

    def way_out(
        self, last: str = "", *, otherwise: str,
        less_memory: str = "use --recompute blocks, fewer --workers, a smaller --batch-size or "
        "--model",
    ) -> str:  # fmt: skip
        """Return the way out for an error message.

        Args:
            last: last line of the process's output.
            otherwise: the way out unless it died, perhaps, for lack of memory.
            less_memory: how to need less memory; the limit is added.
        """
        if not (self.suspicion or says_out_of_memory(last)):
            return otherwise
        limit = memory_limit()
        return (
            f"{less_memory}: all together may have {limit.n_bytes / 2**30:.1f} GiB ({limit.cause})"
        )


_explained_kills = oom_kills()  # those before, and those of processes reaped here


def _is_oom_kill() -> bool:
    """Whether the kernel counts an OOM kill that no reaped process explains yet."""
    global _explained_kills
    is_one = oom_kills() > _explained_kills
    _explained_kills += is_one
    return is_one


class SlotTable(Protocol):
    """A table with a slot for each process, from before its spawn until it is reaped."""

    def acquire_slot(self, slot: int, /) -> object:
        """Assign the slot before the spawn."""

    def set_process(self, slot: int, pid: int, /) -> None:
        """Record the pid of the slot."""

    def mark_dead(self, slot: int, /) -> None:
        """Free the slot of a process that `waitpid` has returned."""


class WorkerProcess:
    """A process, from its spawn until it is reaped.

    Concurrency: used by one thread of one process; another thread may use its pipe.
    """

    def __init__(
        self,
        target: Callable[..., object],
        arguments: tuple[Any, ...] = (),
        *,
        name: str,
        threads: int | None = None,
        daemon: bool | None = True,
        table: SlotTable | None = None,
        slot: int = 0,
    ) -> None:
        """Spawn it.

        Args:
            target: an importable function, which gets one end of a pipe before its arguments.
            arguments: picklable; nothing in them is defined in the caller's `__main__`.
            name: name of the process.
            threads: see `processes.limits_of_threads`; None sets no limits.
            daemon: as in `multiprocessing`; None for a process that has children of its own.
            table: the worker table of an arena, if it has a slot there.
            slot: its worker slot there until it is reaped.

        Raises:
            ConfigError: an argument cannot be sent to a process; the message names it.
            EnvironmentLacks: the system starts no process now; the message says what it lacks.
        """
        self._table, self._slot = table, slot
        self._death: Death | None = None
        self._was_killed = False  # by this process
        with ExitStack() as undo, ExitStack() as done:  # after an error no caller gets this object
            if self._table is not None:
                self._table.acquire_slot(slot)
                undo.callback(self._table.mark_dead, slot)
            with spawning(threads):
                # This end stays open after the process's end, for its last messages.
                self.pipe, far_end = Pipe()
                undo.callback(self.pipe.close)
                done.callback(far_end.close)
                entry = SpawnedCall(target, (far_end, *arguments))
                self.process = get_context("spawn").Process(target=entry, name=name, daemon=daemon)
                undo.callback(self.kill)
                self.process.start()
                _processes.add(self.process)
            undo.pop_all()
        if self._table is not None:
            self._table.set_process(slot, self.pid)

    @property
    def pid(self) -> int:
        """Its process id; the system may reuse it after `reap`."""
        assert self.process.pid is not None
        return self.process.pid

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._death is None and self.process.is_alive()

    def kill(self) -> None:
        """Kill it, if it has started, and wait for its end; call `reap` afterwards."""
        if self.process.pid is None:
            return
        self._was_killed = self.process.exitcode is None
        self.process.kill()
        self.process.join()
        self._exit_code()

    def _exit_code(self) -> int:
        """Wait for the exit code of an ended process, which another thread may be collecting."""
        deadline = time.monotonic() + _NOTED_WITHIN_S
        while (code := self.process.exitcode) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the exit code of process {self.pid} was taken by someone else")
            time.sleep(0.001)
        return code

    def end(self, timeout_s: float | None = 0.0) -> None:
        """Wait until it ends, and kill it after `timeout_s`; call `reap` afterwards."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.kill()

    def reap(self, timeout_s: float | None = 0.0) -> Death:
        """Wait for its end, kill it after `timeout_s`, free its slot, and return its death."""
        if self._death is None:
            self.end(timeout_s)
            code = self._exit_code()
            is_foreign = code == -signal.SIGKILL and not self._was_killed
            self._death = Death(code, self._was_killed, is_foreign and _is_oom_kill())
            self.process.close()
            if self._table is not None:
                self._table.mark_dead(self._slot)
        return self._death

    def close(self) -> None:
        """Kill it if it still runs, reap it, and close the pipe."""
        self.reap()
        self.pipe.close()


class WorkerPool(dict[int, WorkerProcess]):
    """Worker processes that are not reaped yet, by their slot in the arena."""

    def wait(self, timeout_s: float) -> list[int]:
        """Wait up to `timeout_s` for an end; return the slots of all ended processes."""
        connection.wait([one.process.sentinel for one in self.values()], timeout=timeout_s)
        return [slot for slot, one in self.items() if not one.is_alive()]

    def reap(self, slot: int, timeout_s: float = 0.0) -> Death:
        """Reap a process, remove it from the pool and close its pipe; see `WorkerProcess.reap`."""
        process = self.pop(slot)
        death = process.reap(timeout_s)
        process.close()
        return death


def last_lines(output: IO[bytes], since: int = 0) -> list[str]:
    """Return the last lines of a process's log from byte `since` on, without blank ones."""
    output.seek(max(since, output.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = output.read().decode(errors="replace").split("\n")
    return [line for line in lines if line.strip()] or ["it left no message"]


def last_lines_of(log: Path) -> list[str]:
    """Return the `last_lines` of a log, which may be missing or a folder."""
    try:
        with log.open("rb") as output:
            return last_lines(output)
    except OSError:
        return last_lines(BytesIO())


def _end_with_interpreter() -> None:
    """Kill all processes; `multiprocessing` would send SIGTERM, which they ignore, and wait."""
    interrupts.end_all()
    end_spawning()
    for process in list(_processes):
        with contextlib.suppress(ValueError):  # it was reaped meanwhile
            process.kill()


atexit.register(_end_with_interpreter)  # it runs before the exit handler of `multiprocessing`
os.register_at_fork(after_in_child=_processes.clear)  # they are the parent's children
