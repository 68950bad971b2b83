"""How far the training of a candidate is: one line that changes, or a line per evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from mlxhog.config.quantities import format_clock
from mlxhog.machine.interrupts import Interrupts
from mlxhog.mad.result import Point
from mlxhog.report.views import StatusLine, may_redraw

REDRAW_S = 0.2


class RunLine(StatusLine):
    """A `mad.watch.Watch` that shows what it is told, and passes Ctrl-C on.

    Args:
        stream: where to write.
        limit: most steps of the run.
        counts_beats: every beat is a step, as with one worker.
        quiet: write nothing.
        signals: counted while the run goes on; the first ends it after an evaluation.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        limit: int,
        counts_beats: bool,
        quiet: bool,
        signals: Interrupts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, live=may_redraw(stream, quiet=quiet))
        self._stream, self._limit, self._quiet = stream, limit, quiet
        self._counts_beats, self._signals, self._clock = counts_beats, signals, clock
        self._answered = 0
        self._began_s: float | None = None
        self._drawn_s = 0.0
        self._step = 0
        self._point: Point | None = None

    def tell(self, message: str) -> None:
        """Write a line that stays."""
        self._stream.write(message + "\n")
        self._stream.flush()

    def beat(self) -> None:
        """Redraw now and then.

        Raises:
            KeyboardInterrupt: a signal came since the last beat.
        """
        if self._signals.count > self._answered:
            self._answered = self._signals.count
            raise KeyboardInterrupt
        now = self._clock()
        if self._began_s is None:
            self._began_s = now
        if self._counts_beats:
            self._step = min(self._limit, self._step + 1)
        if self.live and now - self._drawn_s >= REDRAW_S:
            self._drawn_s = now
            self.show(self.text())

    def point(self, point: Point) -> None:
        """Show an evaluation."""
        self._point, self._step = point, point.step
        if not (self.live or self._quiet):
            self.tell(self.text())

    def go_on(self, point: Point) -> bool:
        """There are no rungs: never asked."""
        return True

    def text(self) -> str:
        """Say how far it is, how good, and how long it may still take."""
        parts = [f"step {self._step}/{self._limit}"]
        if self._point is not None:
            found = self._point
            parts += [f"loss {found.loss:.3f}", f"accuracy {found.acc_token:.3f}"]
        if rate := self._steps_per_s():
            left_s = (self._limit - self._step) / rate
            parts += [f"{rate:.1f} steps/s", f"at most {format_clock(left_s)} to go"]
        return "  ".join(parts)

    def _steps_per_s(self) -> float | None:
        """The pace up to the last evaluation; before the first, of the steps since the first."""
        if self._point is not None:
            return self._point.step / max(self._point.seconds, 1e-9)
        if self._began_s is None or self._step < 2:
            return None
        return (self._step - 1) / max(self._clock() - self._began_s, 1e-9)
