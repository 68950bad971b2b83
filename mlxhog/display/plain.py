"""Views of a training run: the base class, and plain lines."""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Self

from mlxhog.base.output import lasting
from mlxhog.base.quantities import format_bytes, format_clock, format_count
from mlxhog.display.metrics import best_of, format_loss, format_rate, label
from mlxhog.display.streams import printable_lines, wrapped
from mlxhog.progress import PhaseStatus, Progress

MAX_WORKERS = 4  # a line lists up to this many workers one by one


class RunView:
    """A view of a run that shows nothing; subclasses `show` messages and `draw` the state."""

    @property
    def is_quiet(self) -> bool:
        """Whether it shows nothing."""
        return type(self) is RunView

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the output back."""

    def __call__(self, progress: Progress) -> None:
        """Show the message, if there is one, then the state."""
        if progress.message is not None:
            self.show(printable_lines(progress.message))
        self.draw(progress)

    def show(self, message: str) -> None:
        """Show a message."""

    def draw(self, progress: Progress) -> None:
        """Show the newest state."""


class PlainLines(RunView):
    """A view of a run as a line every `every_s` seconds, and each new message and sample once."""

    def __init__(
        self, stream: object, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._every_s, self._clock = lasting(stream), every_s, clock
        self._next_s, self._step = clock(), 0
        self._sample: str | None = None
        self._phase: PhaseStatus | None = None

    def __exit__(self, *_: object) -> None:
        self._stream.drain()

    def show(self, message: str) -> None:
        """Write lines."""
        self._stream.write("".join(f"{part}\n" for part in wrapped(message)))
        self._stream.flush()

    def draw(self, progress: Progress) -> None:
        """Write a new sample and phase at once, the state and percentages every few seconds.

        Nothing is written while the stream takes no text.
        """
        if self._stream.is_behind:
            return
        phase, shown = progress.phase, self._phase
        is_new = phase is None or shown is None or phase.activity != shown.activity
        if phase != shown and (is_new or self._is_due()):
            self._phase = phase
            if phase is not None:
                self.show(str(phase))
        if progress.sample not in (None, self._sample):
            self._sample = progress.sample
            self.show(f"sample: {progress.sample}")
        if progress.step > self._step and self._is_due():
            self._step = progress.step
            self.show(line(progress))

    def _is_due(self) -> bool:
        """Whether a line is due; if so, the next one is due `every_s` later."""
        now = self._clock()
        if is_due := now >= self._next_s:
            self._next_s = now + self._every_s
        return is_due


def heading(progress: Progress) -> list[str]:
    """Return progress, speed and memory of a run."""
    eta_s = progress.eta_s
    return [
        f"step {progress.step}",
        *([] if progress.epoch is None else [f"epoch {progress.epoch:.2f}"]),
        f"{format_clock(progress.call_s)} ({progress.budget_fraction:.0%})",
        f"ETA {'-' if eta_s is None else format_clock(math.ceil(eta_s - 1e-6))}",
        f"{format_count(progress.tokens)} tokens",
        f"{format_count(progress.tokens_per_s)} tok/s",
        f"memory {format_bytes(progress.memory_bytes)}",
    ]


def losses(progress: Progress) -> list[str]:
    """Return losses, share of lost updates, and label of Metal kernels."""
    train, validation = map(format_loss, (progress.train_bits_per_byte, progress.val_bits_per_byte))
    validation += f" ({best})" if (best := best_of(progress)) else ""
    return [
        f"loss {format_loss(progress.loss)}",
        f"bits/byte: train {train}, validation {validation}",
        f"lost updates {format_rate(progress.lost_update_rate)}",
        *filter(None, [label(progress.gpu_write, progress.kernels)]),
    ]


def line(progress: Progress) -> str:
    """Return the state of a run in one line, with two spaces between parts."""
    workers = [
        f"[{one.slot} {one.backend} {one.state} {one.steps} steps "
        f"{format_count(one.tokens_per_s)} tok/s staleness {one.mean_staleness:.1f}]"
        for one in progress.workers
    ]
    if len(workers) > MAX_WORKERS:
        states = Counter(worker.state for worker in progress.workers)
        counts = ", ".join(f"{n} {state}" for state, n in states.items())
        workers = [f"{len(workers)} workers: {counts}"]
    machines = [f"[{one.name} {one}]" for one in progress.machines]
    return "  ".join([*heading(progress), *losses(progress), *workers, *machines])
