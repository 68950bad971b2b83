"""Standard streams that break: what is told about work must not end the work."""

from __future__ import annotations

import contextlib
import os
from typing import Any, TextIO


class OutputLost(Exception):
    """Standard output cannot be written any more; the cause is the system's error."""


class Lasting:
    """A text stream that falls silent when it cannot be written any more.

    The reader of a pipe may leave, the disk under a log may fill up, a terminal may be closed.

    Args:
        stream: to write to; other attributes than those below are its own.
        ends: raise `OutputLost` the first time, for a command that has nothing else to do.

    Attributes:
        failure: why nothing is written any more, or None.
    """

    def __init__(self, stream: TextIO, *, ends: bool = False) -> None:
        self._stream, self._ends = stream, ends
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or do nothing if that has failed before."""
        if self.failure is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._fall_silent(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing if that has failed before."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        self.failure = error
        with contextlib.suppress(OSError):  # what is still buffered is written when Python exits
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        if self._ends:
            raise OutputLost from error

    def __getattr__(self, name: str) -> Any:
        """The stream's own."""
        return getattr(self._stream, name)
