"""Progress of a training run as plain lines, and the choice between them and a live table."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

from mlxhog.files.quantities import format_bytes, format_count
from mlxhog.report.metrics import Doing, Progress, WorkerReport, clock, eta, label, number, rate
from mlxhog.report.streams import console, printable
from mlxhog.report.views import LineView, Silence, in_notebook, may_redraw

MOST_WORKERS = 4  # that a line tells apart


class Observer(Protocol):
    """Something that is told how a run goes, about twice a second."""

    def __call__(self, progress: Progress) -> None:
        """Show the progress; must not block."""


def observer(
    stream: TextIO, *, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> AbstractContextManager[Observer]:
    """Return a live table where it may be redrawn, and plain lines elsewhere; see `may_redraw`.

    In a notebook it is redrawn in the output of the cell.

    Args:
        stream: where progress goes, usually stderr.
        quiet: show nothing.
        environ: of this process.
    """
    if quiet:
        return Silence()
    notebook = in_notebook()
    if not notebook and not may_redraw(stream, environ):
        return PlainLines(stream)
    from mlxhog.report.terminal import LiveTable  # rich takes 50 ms, which a pipe need not pay

    return LiveTable(None if notebook else console(stream))


class PlainLines(LineView[Progress]):
    """A view of a run that writes one line now and then, and every new message and sample once.

    Args:
        stream: where lines go.
        every_s: seconds between lines.
        clock: seconds, monotonic.
    """

    def __init__(
        self, stream: TextIO, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, every_s, clock)
        self._step = 0
        self._sample: str | None = None
        self._doing: Doing | None = None

    def news(self, progress: Progress) -> Iterator[str]:
        """Yield a new sample, the state after new steps, and what is done beside training.

        Something new is told at once, how far it is now and then.
        """
        doing, shown = progress.doing, self._doing
        another = doing is None or shown is None or doing.activity != shown.activity
        if doing != shown and (another or self.due()):
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
    """Return the whole picture, its parts two spaces apart."""
    parts = [
        f"step {progress.step}",
        clock(progress),
        f"ETA {eta(progress)}",
        f"{format_count(progress.tokens)} tokens",
        f"{format_count(progress.tokens_per_s)} tok/s",
        f"loss {number(progress.loss)}",
        f"bits/byte {number(progress.train_bits_per_byte)}",
        f"held-out {number(progress.val_bits_per_byte)}",
        f"memory {format_bytes(progress.memory_bytes)}",
        f"lost {rate(progress.lost_update_rate)}",
        *filter(None, [label(progress.gpu_write, progress.kernels)]),
        *_workers(progress.workers),
    ]
    return "  ".join(parts)


def _workers(workers: Sequence[WorkerReport]) -> Iterator[str]:
    """Each worker, or of many how many there are in each state."""
    if len(workers) <= MOST_WORKERS:
        yield from map(_worker, workers)
        return
    states = Counter(worker.state for worker in workers)
    yield f"{len(workers)} workers: {', '.join(f'{n} {state}' for state, n in states.items())}"


def _worker(worker: WorkerReport) -> str:
    return (
        f"[{worker.slot} {worker.backend} {worker.state} {worker.steps} steps "
        f"{format_count(worker.tokens_per_s)} tok/s staleness {worker.mean_staleness:.1f}]"
    )
