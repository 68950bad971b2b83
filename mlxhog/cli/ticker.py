"""The line of a command that computes for long, and the way of Ctrl-C into its loop."""

import time
from collections.abc import Callable
from typing import TextIO

from mlxhog.base.interrupts import Interrupts
from mlxhog.report.views import StatusLine

REDRAW_S = 0.2
LINE_S = 5.0
"""Seconds between lines of a pipe."""


class Ticker(StatusLine):
    """A line that is redrawn, or in a pipe a line now and then.

    Args:
        stream: where to write.
        quiet: write nothing.
        signals: counted while the command computes.
    """

    def __init__(self, stream: TextIO, *, quiet: bool, signals: Interrupts) -> None:
        super().__init__(stream, quiet=quiet)
        self._signals, self._answered = signals, 0
        self._next_s = time.monotonic() + (0.0 if self.live else LINE_S)

    def tick(self, text: Callable[[], str]) -> None:
        """Show a text if it is time to; called often.

        Raises:
            KeyboardInterrupt: a signal came since the last call.
        """
        if self._signals.count > self._answered:
            self._answered = self._signals.count
            raise KeyboardInterrupt
        now = time.monotonic()
        if not self.quiet and now >= self._next_s:
            self._next_s = now + (REDRAW_S if self.live else LINE_S)
            (self.show if self.live else self.tell)(text())
