"""What a child is asked to do that ends it."""

import os
import signal

from mlxhog.arena.child import Lane


def die(lane: Lane) -> None:
    """Be killed in the middle of the work."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(lane: Lane) -> None:
    """Find that it cannot be done."""
    raise ValueError("no such kernel")
