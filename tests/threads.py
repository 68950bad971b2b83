"""Threads of a test: one for each thing to be done, and none that the test does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

LIMIT_S = 60.0

Item = TypeVar("Item")


def begin(work: Callable[[Item], object], items: Iterable[Item]) -> list[threading.Thread]:
    """Start a thread for each item; it works on it."""
    threads = [threading.Thread(target=work, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    return threads


def join(threads: Iterable[threading.Thread]) -> None:
    """Wait for the end of every thread, which none may put off for long."""
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "a thread has not ended"


def in_threads(work: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Work on every item at once, and wait for all."""
    join(begin(work, items))
