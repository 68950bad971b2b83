"""Threads of a test, one for each thing to be done, and waiting: for them, for what others do."""

import threading
import time

LIMIT_S = 120.0


def begin(work, items):
    """Start a thread for each item; it works on it."""
    threads = [threading.Thread(target=work, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    return threads


def join(threads, limit_s=LIMIT_S, what="a thread"):
    """Wait for the end of every thread, which none may put off for long."""
    for thread in threads:
        thread.join(limit_s)
        assert not thread.is_alive(), f"{what} has not ended"


def in_threads(work, items, limit_s=LIMIT_S):
    """Work on every item at once, and wait for all."""
    join(begin(work, items), limit_s)


def wait_until(condition, limit_s=LIMIT_S, what="a condition", every_s=0.01):
    """Return the first result of a condition that counts as true."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {limit_s:g} s for: {what}"
        time.sleep(every_s)
    return value
