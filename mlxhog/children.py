"""What spawned processes of mlxhog need: to follow a parent, to share cores, to end by a fault."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from typing import NoReturn

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


def follow_parent() -> None:
    """Leave as soon as the parent is gone, whatever this process is doing; call it first.

    Ctrl-C and SIGTERM, which may be sent to the whole group, are the parent's to answer.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM only afterwards; a child born meanwhile never sees them.

    A terminal sends them to the whole group, and a child that is still importing would die of it.
    """
    held = (signal.SIGINT, signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
