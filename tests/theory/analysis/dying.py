"""What a child is asked to do that ends it."""

import os
import signal


def die(lane):
    """Be killed in the middle of the work."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(lane):
    """Find that it cannot be done."""
    raise ValueError("no such kernel")
