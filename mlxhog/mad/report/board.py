"""The progress of a running study, and the texts that reports have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from mlxhog.base.quantities import format_clock
from mlxhog.mad.study.scheduler import StudyProgress
from mlxhog.mad.study.store import StudyRecord
from mlxhog.report.streams import printable
from mlxhog.report.views import Observer, StatusLine

ELLIPSIS = "…"


def folded(layers: Sequence[str]) -> str:
    """Write a sequence with counted repeats: (mlstm swiglu)*7 slstm swiglu."""
    parts: list[str] = []
    i = 0
    while i < len(layers):
        size, times = _repeat(layers, i)
        group = " ".join(layers[i : i + size])
        if times > 1:
            group = f"({group})*{times}" if size > 1 else f"{group}*{times}"
        parts.append(group)
        i += size * times
    return " ".join(parts)


def _repeat(layers: Sequence[str], start: int) -> tuple[int, int]:
    """Size and repeats of the group at `start` whose repeats cover most layers."""
    best = (1, 1)
    for size in range(1, (len(layers) - start) // 2 + 1):
        group, times = layers[start : start + size], 1
        while layers[start + size * times : start + size * (times + 1)] == group:
            times += 1
        if times > 1 and size * times > best[0] * best[1]:
            best = (size, times)
    return best


def cut(text: str, width: int | None) -> str:
    """Cut a text at its end to `width` columns."""
    if width is None or len(text) <= width:
        return text
    return text[: max(0, width - 1)] + ELLIPSIS[:width]


def short(candidate: str, width: int) -> str:
    """Return a canonical string: folded if it is too long, then cut."""
    return candidate if len(candidate) <= width else cut(folded(candidate.split()), width)


def score(value: float, interval: float | None) -> str:
    """Write a score, with the half width of its interval if there is one."""
    return f"{value:.3f}" if interval is None else f"{value:.3f} ± {interval:.3f}"


def accuracy(value: float | None) -> str:
    """Write an accuracy; None is -."""
    return "-" if value is None else f"{value:.3f}"


def heading(progress: StudyProgress) -> str:
    """Return the heading: runs, time and statuses."""
    done, total = progress.done, progress.total
    of = "" if total is None else f" of {total} runs ({min(1, done / total if total else 1):.0%})"
    eta = "-" if progress.eta_s is None else format_clock(progress.eta_s)
    parts = [
        f"study {progress.study}",
        f"{done}{of or ' runs'}",
        format_clock(progress.elapsed_s),
        f"ETA {eta}",
        *(f"{n} {status}" for status, n in progress.statuses.items() if status != "done"),
    ]
    return "  ".join(parts)


def best(progress: StudyProgress) -> str:
    """Return the best candidate so far."""
    if (top := progress.best) is None:
        return "best -"
    lacks = f" ({top.missing} runs missing)" if top.missing else ""
    return f"best {score(top.score, top.interval)}{lacks} {folded(top.candidate.split())}"


def trouble_line(trouble: StudyRecord) -> str:
    """Return the line of a run that failed or diverged."""
    reason = f": {printable(trouble.reason)}" if trouble.reason else ""
    return f"{trouble.status}  {trouble.title}{reason}  {folded(trouble.candidate.split())}"


EVERY_S = 10.0
"""Seconds between lines of a pipe."""


@contextmanager
def shown(stream: TextIO, *, quiet: bool = False) -> Iterator[Observer[StudyProgress]]:
    """Show a study on one line of a terminal, in a pipe on a line now and then.

    Yields:
        The function that shows the progress; every message and failure is written once.
    """
    troubles, line_at = 0, time.monotonic()
    with StatusLine(stream, quiet=quiet) as line:

        def show(progress: StudyProgress) -> None:
            nonlocal troubles, line_at
            if progress.message is not None:
                line.tell(progress.message)
            for trouble in progress.troubles[troubles:]:
                line.tell(trouble_line(trouble))
            troubles = len(progress.troubles)
            state = f"{heading(progress)}  {best(progress)}"
            line.show(state)
            if not line.live and time.monotonic() >= line_at:
                line_at = time.monotonic() + EVERY_S
                line.tell(state)

        yield show
