"""Threads of a test: one for each thing to be done, and none that the test does not wait for."""

import threading
from typing import TypeVar

LIMIT_S = 60.0

Item = TypeVar("Item")


def begin(work, items):
    """Start a thread for each item; it works on it."""
    threads = [threading.Thread(target=work, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    return threads


def join(threads):
    """Wait for the end of every thread, which none may put off for long."""
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "a thread has not ended"


def in_threads(work, items):
    """Work on every item at once, and wait for all."""
    join(begin(work, items))
