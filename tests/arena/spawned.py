"""Functions that a spawned worker runs; children import them."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

from mlxhog.machine.processes import end_by, follow_parent


def echo(pipe: Connection) -> None:
    """In a worker: send back what comes, until the pipe is closed."""
    follow_parent()
    try:
        while True:
            pipe.send(pipe.recv())
    except EOFError:
        pass


def leave(code: int) -> None:
    """In a worker: end at once."""
    follow_parent()
    os._exit(code)


def meet_fault() -> None:
    """In a worker: an error that no restart cures."""
    follow_parent()
    end_by(TypeError("no such argument"))


def stay(pipe: Connection) -> None:
    """In a worker: never end by itself."""
    follow_parent()
    pipe.send(os.getpid())
    time.sleep(3600)
