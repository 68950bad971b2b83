"""Streams whose reader has left."""

import contextlib
import os


@contextlib.contextmanager
def broken_pipe():
    """The end of a pipe that is written to, after the other end was closed."""
    read, write = os.pipe()
    os.close(read)
    stream = open(write, "w")  # noqa: SIM115  closed below, where it may fail
    try:
        yield stream
    finally:
        with contextlib.suppress(BrokenPipeError):
            stream.close()
