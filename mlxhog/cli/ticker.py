"""The line of a command that computes for long, and the way of Ctrl-C into its loop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlxhog.base.interrupts import Interrupts
from mlxhog.report.views import StatusLine

REDRAW_S = 0.2
LINE_S = 5.0
"""Seconds between lines of a pipe."""

Tick = Callable[[Callable[[], str]], None]
"""Shows a text if it is time to; called often. It raises KeyboardInterrupt after a signal."""


@contextmanager
def ticking(line: StatusLine) -> Iterator[Tick]:
    """Count signals in the block, and redraw a line, or in a pipe write one now and then."""
    next_s, answered = time.monotonic() + (0.0 if line.live else LINE_S), 0

    def tick(text: Callable[[], str]) -> None:
        nonlocal next_s, answered
        if signals.count > answered:
            answered = signals.count
            raise KeyboardInterrupt
        now = time.monotonic()
        if not line.quiet and now >= next_s:
            next_s = now + (REDRAW_S if line.live else LINE_S)
            (line.show if line.live else line.tell)(text())

    with Interrupts() as signals, line:
        yield tick
