"""A lock on an open file that the kernel frees when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from typing import IO

PATIENCE_S = 0.2
"""A reader that tests a lock holds it for microseconds; who wants to keep it outwaits that."""


class Held(Exception):
    """Another process holds the lock; `holder` is its id, or "unknown"."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


def take(file: IO[str]) -> None:
    """Take the lock until the file is closed, and leave this process's id in the file.

    Args:
        file: open for reading and appending ("a+").

    Raises:
        Held: another process has it.
    """
    if not _flock(file, fcntl.LOCK_EX, PATIENCE_S):
        file.seek(0)
        raise Held(file.read().strip() or "unknown")
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def is_held(file: IO[str]) -> bool:
    """Return whether another process holds the lock now."""
    return not _flock(file, fcntl.LOCK_SH, 0.0)


def _flock(file: IO[str], kind: int, patience_s: float) -> bool:
    """Take a lock without waiting longer than `patience_s`; False if someone else holds it."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
