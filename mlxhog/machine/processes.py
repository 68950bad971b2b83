"""Surroundings in which processes are spawned, and what a spawned one does first and last.

A spawned process follows its parent, which it watches before it imports what it is to do, and
shares the cores. It imports nothing from the current directory, and not the caller's program: a
script without `if __name__ == "__main__"`, a program on standard input and a notebook may all
train. Its exit code tells an error that no restart cures.
"""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import (
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from multiprocessing import connection, parent_process, reduction, resource_tracker
from types import ModuleType
from typing import Any, NoReturn

from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.machine.interrupts import SIGNALS

FAULTS = (
    TypeError,
    ValueError,
    AttributeError,
    NameError,
    LookupError,
    AssertionError,
    ArithmeticError,
    ImportError,
    NotImplementedError,
    RecursionError,
)
"""Errors of a program in itself. A new process does the same again, so no restart cures them.

Other RuntimeErrors, OSError and MemoryError are not among them: frameworks and systems raise them
for what may have passed when the worker is back, such as a lack of memory.
"""

FAULT_EXIT_CODE = 70  # of a process that one of them ended: like EX_SOFTWARE of other programs

_process_wide = threading.RLock()
"""Held while the environment, `__main__` or the standard streams of this process are others."""


@contextmanager
def spawning(threads: int | None = None) -> Iterator[None]:
    """Processes that are spawned in this block get a safe environment.

    Args:
        threads: see `thread_limits`; None sets no limits.

    Raises:
        ConfigError: something cannot be sent to a process; the message says what.
        EnvironmentLacks: this process may not open as many files as that takes.

    Concurrency: changes the environment and `sys.modules` of this process meanwhile; other threads
    wait until they are as before.
    """
    limits = nullcontext() if threads is None else thread_limits(threads)
    # Python looks for modules beside the program first: for `-c`, in the current directory.
    safe = environment({"PYTHONSAFEPATH": "1"})
    with _process_wide, limits, safe, _without_main(), _without_broken_output():
        with _held_back((signal.SIGHUP,)):  # which the tracker, unlike the others, does not ignore
            resource_tracker.ensure_running()  # its own start lets the other signals through again
        try:
            with _held_back(SIGNALS):
                yield
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if "pickle" not in str(error):
                raise
            raise ConfigError(
                f"a worker process cannot be given what this program defines: {error}; workers do "
                "not import the program that calls mlxhog, so move it to a module of its own"
            ) from error
        except OSError as error:
            if error.errno not in NO_DESCRIPTORS:
                raise
            raise EnvironmentLacks(f"no process can be started: {descriptors_text()}") from error


def end_spawning() -> None:
    """Let no other thread spawn a process: it waits for ever. For the end of the interpreter."""
    _process_wide.acquire()


def _renew_lock() -> None:
    global _process_wide
    _process_wide = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)  # the thread that held it is not there


class Entry:
    """What a spawned process is to call, in a form that it imports when it follows its parent.

    An import takes a second and more on a busy machine, and the parent may die meanwhile.
    """

    def __init__(
        self, target: Callable[..., object], arguments: tuple[Any, ...], *, follows: bool = True
    ) -> None:
        """Hold an importable function and picklable arguments."""
        self._call: bytes | tuple[Callable[..., object], tuple[Any, ...]] = (target, arguments)
        self._follows = follows

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the call as bytes, which the spawned process reads later."""
        return vars(self) | {"_call": bytes(reduction.ForkingPickler.dumps(self._call))}

    def __call__(self) -> None:
        """Follow the parent, and make the call."""
        if self._follows:
            follow_parent()
        call = self._call
        target, arguments = pickle.loads(call) if isinstance(call, bytes) else call
        target(*arguments)


def follow_parent() -> None:
    """Leave as soon as the parent is gone, whatever this process is doing.

    A target of `WorkerProcess` runs after this; others call it first. Signals to the whole group,
    as a terminal sends them, are the parent's to answer.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


@contextmanager
def thread_limits(threads: int) -> Iterator[None]:
    """Environment in which a child's libraries start no more threads than it was given."""
    limits = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # a spinning pool takes the cores from the native operators'
        "VECLIB_MAXIMUM_THREADS": str(threads),
    }
    with environment(limits):
        yield


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables meanwhile; other threads that do so wait."""
    with _process_wide:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def _held_back(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Deliver signals only afterwards; a child that is spawned meanwhile never sees them.

    A terminal sends them to the whole group, and a child that is still importing would die of it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's program, which `multiprocessing` would have every child import."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _without_broken_output() -> Iterator[None]:
    """Hide a standard stream whose reader has left: `multiprocessing` flushes it when it spawns."""
    with ExitStack() as redirects:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            try:
                stream.flush()
            except OSError:
                redirects.enter_context(redirect(None))
            except (AttributeError, ValueError):
                pass  # none, or a closed one, which `multiprocessing` expects
        yield


NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
"""Errors of a process, or a machine, that may open no more files."""


def require_descriptors(n: int, what: str) -> None:
    """Refuse to begin what needs more open files than this process may still have.

    Args:
        n: files, pipes and sockets.
        what: needs them, for the message.

    Raises:
        EnvironmentLacks: there are fewer.
    """
    descriptors: list[int] = []
    try:
        for _ in range(n):
            descriptors.append(os.dup(2))
    except OSError as error:
        if error.errno not in NO_DESCRIPTORS:
            raise
        text = f"{what} needs {n} open files, and {len(descriptors)} more can be opened"
        raise EnvironmentLacks(f"{text}: {descriptors_text()}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def descriptors_text() -> str:
    """Say how many files this process may have open, and how it may have more."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"this process may have {allowed:,} (ulimit -n); raise it with: ulimit -n 1024"


def end_by(fault: BaseException) -> NoReturn:
    """Print a fault, its last line being `in_one_line`, and end this process at once."""
    try:
        traceback.print_exception(fault)
        print(in_one_line(fault), file=sys.stderr, flush=True)
    finally:
        os._exit(FAULT_EXIT_CODE)


def in_one_line(error: BaseException) -> str:
    """Return an error's type and message; of a message of several lines the first and the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else "no message"
    return f"{type(error).__name__}: {words}"
