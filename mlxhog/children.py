"""What every spawned process of mlxhog needs: to follow its parent, and to share the cores."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process


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
