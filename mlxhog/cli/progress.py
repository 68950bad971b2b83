"""How far a command is that moves many bytes: one line that changes, or one now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from mlxhog.config.quantities import format_bytes
from mlxhog.report.status_line import StatusLine
from mlxhog.report.views import may_redraw


class Bytes(StatusLine):
    """Told (what, bytes done, bytes in all) now and then.

    A terminal has one line that changes; a pipe gets a line every few seconds, so short work
    leaves none.

    Args:
        stream: where to write.
        quiet: write nothing.
        every_s: seconds between lines of a pipe.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._quiet, self._every_s, self._clock = stream, quiet, every_s, clock
        self._next_s = clock() + every_s
        super().__init__(stream, live=may_redraw(stream, quiet=quiet))

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far it is."""
        text = f"{done / max(total, 1):.0%}  {format_bytes(done)} of {format_bytes(total)}  {what}"
        if self.live:
            self.show(text)
        elif not self._quiet and self._clock() >= self._next_s:
            self._next_s = self._clock() + self._every_s
            self._stream.write(text + "\n")
            self._stream.flush()
