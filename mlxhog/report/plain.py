"""Progress of a training run as plain lines, and the choice between these and a live table."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from mlxhog.base.quantities import format_count
from mlxhog.report.metrics import Doing, Progress, heading, losses
from mlxhog.report.streams import console, printable, wrapped
from mlxhog.report.views import RunView, may_redraw

MOST_WORKERS = 4  # a line lists up to this many workers one by one


def observer(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> RunView:
    """Return a live table in a notebook and on a terminal that can redraw it, else plain lines.

    Args:
        stream: stream for the progress, usually stderr; see `may_redraw`.
        quiet: whether to show nothing.
        environ: environment of this process.
    """
    if quiet:
        return RunView()
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    in_notebook = getattr(shell, "kernel", None) is not None
    if not in_notebook and not may_redraw(stream, environ):
        return PlainLines(stream)
    from mlxhog.report.terminal import Cell, LiveTable  # imports rich, which takes 50 ms

    return Cell() if in_notebook else LiveTable(console(stream))


class PlainLines(RunView):
    """A view of a run as a line every few seconds, and each new message and sample once.

    Args:
        stream: stream for the lines, which are wrapped at 100 characters.
        every_s: seconds between lines.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, stream: TextIO, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._next_s, self._step = clock(), 0
        self._sample: str | None = None
        self._doing: Doing | None = None

    def show(self, message: str) -> None:
        """Write lines."""
        self._stream.write("".join(f"{part}\n" for part in wrapped(message)))
        self._stream.flush()

    def draw(self, progress: Progress) -> None:
        """Write a new sample, the state after new steps, and activities besides training."""
        for text in self._news(progress):
            self.show(text)

    def _news(self, progress: Progress) -> Iterator[str]:
        """Yield new lines: an activity at once, its percentage and the state every few seconds."""
        doing, shown = progress.doing, self._doing
        is_new = doing is None or shown is None or doing.activity != shown.activity
        if doing != shown and (is_new or self._due()):
            self._doing = doing
            if doing is not None:
                yield str(doing)
        if progress.sample not in (None, self._sample):
            self._sample = progress.sample
            yield f"sample: {printable(str(progress.sample))}"
        if progress.step > self._step and self._due():
            self._step = progress.step
            yield line(progress)

    def _due(self) -> bool:
        """Whether a line of the state is due; if so, the next one is due `every_s` later."""
        now = self._clock()
        is_due = now >= self._next_s
        if is_due:
            self._next_s = now + self._every_s
        return is_due


def line(progress: Progress) -> str:
    """Return the state of the run in one line; its parts are two spaces apart."""
    workers = [
        f"[{one.slot} {one.backend} {one.state} {one.steps} steps "
        f"{format_count(one.tokens_per_s)} tok/s staleness {one.mean_staleness:.1f}]"
        for one in progress.workers
    ]
    if len(workers) > MOST_WORKERS:
        states = Counter(worker.state for worker in progress.workers)
        counts = ", ".join(f"{n} {state}" for state, n in states.items())
        workers = [f"{len(workers)} workers: {counts}"]
    machines = [f"[{one.name} {one}]" for one in progress.machines]
    return "  ".join([*heading(progress), *losses(progress), *workers, *machines])
