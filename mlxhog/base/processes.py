"""Spawn processes in a safe environment; the start and the end of a spawned process.

A spawned process ends with its parent: it watches the parent before it imports its function. Its
libraries use a limited number of threads. It imports nothing from the current directory, and not
the caller's program, so a script without `if __name__ == "__main__"`, a program on standard input
and a notebook can all train. One exit code marks errors that a restart would repeat.
"""

import errno
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from multiprocessing import connection, current_process, parent_process, reduction, resource_tracker
from types import ModuleType
from typing import Any, NoReturn

from mlxhog.base import darwin
from mlxhog.base.interrupts import SIGNALS, WARNINGS
from mlxhog.errors import ConfigError, EnvironmentLacks, message_of

FAULTS = (
    TypeError, ValueError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError,
    ImportError, NotImplementedError, RecursionError,
)  # fmt: skip
"""Errors of the program itself, which a restart would repeat.

Other RuntimeErrors, OSError and MemoryError may be over at a restart, such as a lack of memory.
"""

FAULT_EXIT_CODE = 70  # of a process that ended by one of `FAULTS`; the same as EX_SOFTWARE

_process_wide = threading.RLock()
"""Lock of the environment, `__main__` and the standard streams while they are replaced."""


@contextmanager
def spawning(threads: int | None = None) -> Iterator[None]:
    """Spawn processes of this block in a safe environment.

    Args:
        threads: see `limits_of_threads`; None sets no limits.

    Raises:
        ConfigError: an argument cannot be sent to a process; the message names it.
        EnvironmentLacks: the system starts no process now: it lacks files, processes or memory; or
            this process is daemonic or ignores SIGCHLD.

    Concurrency: changes the environment and `sys.modules` of this process during the block; other
    threads that spawn wait until it has ended.
    """
    require_children()
    # Python looks for modules beside the program first: for `-c`, in the current directory.
    safe = environment(
        {"PYTHONSAFEPATH": "1"} | ({} if threads is None else limits_of_threads(threads))
    )
    with _process_wide, safe, _without_main(), _without_broken_output():
        with _blocked_signals((signal.SIGHUP, *WARNINGS)):  # the tracker ignores only the others
            resource_tracker.ensure_running()  # it unblocks the other signals itself
        try:
            with _blocked_signals(SIGNALS):
                yield
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if "pickle" not in str(error):
                raise
            raise ConfigError(
                f"a worker process cannot be given what this program defines: {error}; workers do "
                "not import the program that calls mlxhog, so move it to a module of its own"
            ) from error
        except OSError as error:
            raise EnvironmentLacks(f"no process can be started: {_lacking(error)}") from error


def require_children() -> None:
    """Raise EnvironmentLacks if this process may have no children, or not reap them; call early."""
    if current_process().daemon:
        raise EnvironmentLacks(
            f"{current_process().name} is a daemonic process, as those of multiprocessing.Pool, "
            "Celery's prefork pool and dask's nanny are, and Python allows it no child processes, "
            "which mlxhog needs; call mlxhog from a process of "
            "concurrent.futures.ProcessPoolExecutor, with celery worker --pool threads, or with "
            "dask worker --no-nanny"
        )
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # the kernel reaps them, codes and all
        raise EnvironmentLacks(
            "this process ignores SIGCHLD, so it cannot learn how its child processes end, which "
            "mlxhog needs; first call signal.signal(signal.SIGCHLD, signal.SIG_DFL)"
        )


def end_spawning() -> None:
    """Block other threads from spawning; called at the interpreter's exit."""
    _process_wide.acquire()


def _renew_lock() -> None:
    global _process_wide
    _process_wide = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)  # its holder does not exist in the child


class SpawnedCall:
    """The call of a spawned process: an importable function, and picklable arguments.

    The function is imported after `follow_parent`: an import takes seconds on a busy machine, and
    the parent may die meanwhile.
    """

    def __init__(self, target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._call: bytes | tuple[Callable[..., object], tuple[Any, ...]] = (target, arguments)

    def __getstate__(self) -> dict[str, Any]:
        return {"_call": bytes(reduction.ForkingPickler.dumps(self._call))}

    def __call__(self) -> None:
        """Follow the parent, ask for performance cores, then make the call."""
        follow_parent()
        darwin.ask_for_performance_cores()
        call = self._call
        target, arguments = pickle.loads(call) if isinstance(call, bytes) else call
        target(*arguments)


def follow_parent() -> None:
    """End this process as soon as its parent has ended, and ignore signals from the terminal.

    `WorkerProcess` calls this before its target; other processes call it first. A terminal sends
    signals to the whole process group; only the parent answers them.
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


def limits_of_threads(threads: int) -> dict[str, str]:
    """Return environment variables that limit the threads of a child's libraries."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # a spinning pool takes the cores from the native operators'
        "VECLIB_MAXIMUM_THREADS": str(threads),
    }


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables during the block; other threads that do so wait."""
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
def _blocked_signals(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Block signals in the block and in its children, which a terminal would kill at the start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's program, which `multiprocessing` would import in every child."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _without_broken_output() -> Iterator[None]:
    """Hide a standard stream that cannot be flushed: `multiprocessing` flushes it at a spawn."""
    with ExitStack() as redirects:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            try:
                stream.flush()
            except Exception:  # its reader has ended, or it is none, or an object of the caller's
                redirects.enter_context(redirect(None))
        yield


NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)  # the limit of open files is reached


def require_descriptors(n: int, what: str) -> None:
    """Raise EnvironmentLacks if this process may not open `n` more files, pipes and sockets."""
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


def _lacking(error: OSError) -> str:
    if error.errno in NO_DESCRIPTORS:
        return descriptors_text()
    if error.errno == errno.EAGAIN:
        return (
            "the limit of processes is reached (ulimit -u, or pids.max of a container); end others "
            "or raise it"
        )
    if error.errno == errno.ENOMEM:
        return "the memory is used up; end other programs, or take fewer workers"
    return str(error)


def descriptors_text() -> str:
    """Return the limit of open files, and how to raise it."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"this process may have {allowed:,} (ulimit -n); raise it with: ulimit -n 1024"


def end_by(fault: BaseException) -> NoReturn:
    """Print a fault, its type and message on the last line, and end this process at once."""
    try:
        traceback.print_exception(fault)
        print(f"{type(fault).__name__}: {message_of(fault)}", file=sys.stderr, flush=True)
    finally:
        os._exit(FAULT_EXIT_CODE)
