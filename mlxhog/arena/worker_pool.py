"""Worker processes: spawned, watched, ended and reaped; one alone, or a pool by their slots.

None outlives the process that spawned it: it watches that process from its first moment on
(`processes.Entry`), and is ended where that process ends while a daemon thread still has it. What a
dead one held in an arena is declared free after `waitpid` has said that it is gone, never before.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe, connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import IO, Any

from mlxhog.arena.arena import Arena
from mlxhog.machine import interrupts
from mlxhog.machine.processes import FAULT_EXIT_CODE, Entry, end_spawning, spawning

_TAIL_BYTES = 4096  # of output that may explain a death

_processes: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
"""Those that were spawned here and are not reaped."""


@dataclass(frozen=True)
class Death:
    """How a process ended: its exit code, or -n where signal n ended it."""

    code: int

    @property
    def is_fault(self) -> bool:
        """Whether an error ended it that no restart cures; see `processes.FAULTS`."""
        return self.code == FAULT_EXIT_CODE

    @property
    def signal_name(self) -> str | None:
        """The signal that ended it; None where it left by itself."""
        return signal.Signals(-self.code).name if self.code < 0 else None

    def __str__(self) -> str:
        """Spell it.

        >>> str(Death(-9)), str(Death(3))
        ('signal SIGKILL', 'exit code 3')
        """
        return f"signal {self.signal_name}" if self.signal_name else f"exit code {self.code}"


class WorkerProcess:
    """A process from its spawning until it is reaped.

    Concurrency: used by one thread of one process; its pipe may have a thread of its own.
    """

    def __init__(
        self,
        target: Callable[..., object],
        arguments: tuple[Any, ...] = (),
        *,
        name: str,
        threads: int | None = None,
        daemon: bool | None = True,
        follows: bool = True,
        pipe: bool = False,
        arena: Arena | None = None,
        slots: tuple[int, ...] = (),
    ) -> None:
        """Spawn it.

        Args:
            target: an importable function.
            arguments: picklable; nothing in them is defined in the caller's `__main__`.
            name: of the process.
            threads: see `processes.thread_limits`; None sets no limits.
            daemon: None where it has children of its own.
            follows: whether it leaves as soon as this process is gone.
            pipe: whether `target` gets one end of a pipe, before its other arguments.
            arena: whose worker it is.
            slots: worker slots of the arena that it takes until it is reaped.

        Raises:
            ConfigError: something cannot be sent to a process; the message says what.
            EnvironmentLacks: this process may not open as many files as that takes.
            ArenaError: a slot still has a living worker.
        """
        self._entries = [] if arena is None else [(arena.workers, slot) for slot in slots]
        self._death: Death | None = None
        self._pipe: Connection | None = None
        for table, slot in self._entries:
            table.acquire_slot(slot=slot)
        far_end: Connection | None = None
        try:
            with spawning(threads):
                if pipe:
                    self._pipe, far_end = Pipe()
                    arguments = (far_end, *arguments)
                entry = Entry(target, arguments, follows=follows)
                self.process = get_context("spawn").Process(target=entry, name=name, daemon=daemon)
                self.process.start()
                _processes.add(self.process)
        except BaseException:  # no caller gets hold of it
            self._undo()
            raise
        finally:
            if far_end is not None:
                far_end.close()
        for table, slot in self._entries:
            table.seated(slot, self.pid)

    def _undo(self) -> None:
        """Leave nothing of a process that was not spawned, or of one that is no longer needed."""
        process = getattr(self, "process", None)
        if process is not None and process.pid is not None:
            self.kill()
        for table, slot in self._entries:
            table.mark_dead(slot)
        if self._pipe is not None:
            self._pipe.close()

    @property
    def pid(self) -> int:
        """Its process id, its own until it is reaped."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def pipe(self) -> Connection:
        """This end of the pipe; it outlasts the process, for what that said last."""
        assert self._pipe is not None
        return self._pipe

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._death is None and self.process.is_alive()

    def kill(self) -> None:
        """End it, whatever it is doing, and wait until it is gone; it is still to be reaped."""
        self.process.kill()
        self.process.join()

    def end(self, timeout_s: float | None = 0.0) -> None:
        """Wait until it ends, and kill it where that takes longer; it is still to be reaped."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.kill()

    def reap(self, timeout_s: float | None = 0.0) -> Death:
        """Wait until it ends, kill it where that takes longer, and free its slots.

        Returns:
            How it ended; the same whenever this is called again.
        """
        if self._death is None:
            self.end(timeout_s)
            assert self.process.exitcode is not None
            self._death = Death(self.process.exitcode)
            self.process.close()
            for table, slot in self._entries:
                table.mark_dead(slot)
        return self._death

    def close(self) -> None:
        """End it, whatever it is doing, reap it, and close the pipe."""
        self.reap()
        if self._pipe is not None:
            self._pipe.close()


class WorkerPool(dict[int, WorkerProcess]):
    """Worker processes that are not reaped yet, by the slot each has in its arena."""

    def wait(self, timeout_s: float) -> list[int]:
        """Wait until one has ended, or the time is over; returns the slots of all that have."""
        connection.wait([one.process.sentinel for one in self.values()], timeout=timeout_s)
        return [slot for slot, one in self.items() if not one.is_alive()]

    def reap(self, slot: int, timeout_s: float = 0.0) -> Death:
        """Take one out of the pool; see `WorkerProcess.reap`."""
        return self.pop(slot).reap(timeout_s)


def last_lines(output: IO[bytes], since: int = 0) -> list[str]:
    """Return the last lines with text in the log of a process that began at byte `since` of it."""
    output.seek(max(since, output.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = output.read().decode(errors="replace").split("\n")
    return [line for line in lines if line.strip()] or ["it left no message"]


def _end_with_interpreter() -> None:
    """End the processes of daemon threads, which the end of the interpreter is about to stop.

    `multiprocessing` would send them SIGTERM, which they leave to this process to answer, and wait.
    """
    interrupts.end_all()
    end_spawning()
    for process in list(_processes):
        with contextlib.suppress(ValueError):  # it was reaped meanwhile
            process.kill()


atexit.register(_end_with_interpreter)  # it comes before that of `multiprocessing`
os.register_at_fork(after_in_child=_processes.clear)  # they are the parent's
