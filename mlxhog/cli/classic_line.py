"""How far a classic run is: one line that changes on a terminal, a few lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from mlxhog.classic.result import Epoch
from mlxhog.config.quantities import format_clock, format_count
from mlxhog.machine.interrupts import Interrupts
from mlxhog.report.status_line import StatusLine
from mlxhog.report.views import may_redraw

REDRAW_S = 0.2
LINE_S = 5.0


class ClassicLine(StatusLine):
    """A `classic.watch.Watch` that shows what it is told, and passes Ctrl-C on.

    Args:
        stream: where to write.
        quiet: write nothing but messages.
        signals: counted while the run goes on; the first one ends it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool,
        signals: Interrupts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, live=may_redraw(stream, quiet=quiet))
        self._stream, self._quiet, self._signals, self._clock = stream, quiet, signals, clock
        self._what, self._epochs, self._examples = "", 0, 1
        self._epoch: Epoch | None = None
        self._done = 0
        self._began_s = clock()
        self._next_s = self._began_s + (0.0 if self.live else LINE_S)

    def began(self, what: str, epochs: int, examples: int) -> None:
        """Begin to count a run's epochs."""
        self._what, self._epochs, self._examples = what, epochs, examples
        self._epoch, self._done, self._began_s = None, 0, self._clock()

    def beat(self, done: int) -> None:
        """Redraw now and then.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        if self._signals.count:
            raise KeyboardInterrupt
        self._done = done
        self._draw()

    def epoch(self, epoch: Epoch) -> None:
        """Show what was measured."""
        self._epoch, self._done = epoch, 0
        self._draw()

    def tell(self, message: str) -> None:
        """Write a line that stays."""
        self._stream.write(message + "\n")
        self._stream.flush()

    def _draw(self) -> None:
        now = self._clock()
        if self._quiet or now < self._next_s:
            return
        self._next_s = now + (REDRAW_S if self.live else LINE_S)
        if self.live:
            self.show(self.text())
        else:
            self.tell(self.text())

    def text(self) -> str:
        """Say how far it is, how good, how fast, and how long it may still take."""
        ended = 0 if self._epoch is None else self._epoch.number
        part = ended + min(1.0, self._done / self._examples)
        parts = [self._what, f"epoch {min(ended + 1, self._epochs)}/{self._epochs}"]
        if self._epoch is not None:
            rate = self._epoch.examples / max(self._epoch.seconds, 1e-9)
            parts += [f"objective {self._epoch.objective:.5g}", f"{format_count(rate)} examples/s"]
        if part > 0:
            left_s = (self._epochs - part) * (self._clock() - self._began_s) / part
            parts.append(f"{format_clock(left_s)} to go")
        return "  ".join(parts)
