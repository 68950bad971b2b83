"""Progress of a training run as plain lines, and the choice between these and a live table."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TextIO

from mlxhog.base.quantities import format_count
from mlxhog.report.metrics import Doing, Progress, WorkerReport, heading, losses
from mlxhog.report.streams import console, printable
from mlxhog.report.views import LineView, Observer, View, in_notebook, may_redraw

MOST_WORKERS = 4  # a line lists up to this many workers one by one


def observer(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> AbstractContextManager[Observer[Progress]]:
    """Return a live table if the stream can redraw it, else plain lines; see `may_redraw`.

    In a notebook the table is redrawn in the output of the cell.

    Args:
        stream: stream for the progress, usually stderr.
        quiet: whether to show nothing.
        environ: environment of this process.
    """
    if quiet:
        return View[Progress]()
    notebook = in_notebook()
    if not notebook and not may_redraw(stream, environ):
        return PlainLines(stream)
    from mlxhog.report.terminal import LiveTable  # imports rich, which takes 50 ms

    return LiveTable(None if notebook else console(stream))


class PlainLines(LineView[Progress]):
    """A view of a run as a line every few seconds, and each new message and sample once.

    Args:
        stream: stream for the lines.
        every_s: seconds between lines.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, stream: TextIO, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, every_s, clock)
        self._step = 0
        self._sample: str | None = None
        self._doing: Doing | None = None

    def news(self, progress: Progress) -> Iterator[str]:
        """Yield a new sample, the state after new steps, and activities besides training.

        A new activity is shown at once, its percentage every few seconds.
        """
        doing, shown = progress.doing, self._doing
        is_new = doing is None or shown is None or doing.activity != shown.activity
        if doing != shown and (is_new or self.due()):
            self._doing = doing
            if doing is not None:
                yield str(doing)
        if progress.sample is not None and progress.sample != self._sample:
            yield f"sample: {printable(progress.sample)}"
            self._sample = progress.sample
        if progress.step > self._step and self.due():
            self._step = progress.step
            yield line(progress)


def line(progress: Progress) -> str:
    """Return the state of the run in one line; its parts are two spaces apart."""
    machines = (f"[{one.name} {one}]" for one in progress.machines)
    parts = [*heading(progress), *losses(progress), *_workers(progress.workers), *machines]
    return "  ".join(parts)


def _workers(workers: Sequence[WorkerReport]) -> list[str]:
    """Each worker; of many workers, the number in each state."""
    if len(workers) > MOST_WORKERS:
        states = Counter(worker.state for worker in workers)
        counts = ", ".join(f"{n} {state}" for state, n in states.items())
        return [f"{len(workers)} workers: {counts}"]
    return [
        f"[{worker.slot} {worker.backend} {worker.state} {worker.steps} steps "
        f"{format_count(worker.tokens_per_s)} tok/s staleness {worker.mean_staleness:.1f}]"
        for worker in workers
    ]
