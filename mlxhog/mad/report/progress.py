"""The progress of a running study, and the texts that reports have in common."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from mlxhog.base.quantities import format_clock
from mlxhog.display.streams import printable
from mlxhog.display.views import Observer, StatusLine
from mlxhog.mad.study.scheduler import StudyProgress

EVERY_S = 10.0
"""Seconds between lines of a pipe."""


def compact(layers: Sequence[str]) -> str:
    """Write a sequence with counted repeats: (mlstm swiglu)*7 slstm swiglu."""

    def counted(repeats: re.Match[str]) -> str:
        group = repeats[1]
        times = len(repeats[0].split()) // len(group.split())
        return f"({group})*{times}" if " " in group else f"{group}*{times}"

    return re.sub(r"(?<!\S)(\S+(?: \S+)*?)(?: \1)+(?!\S)", counted, " ".join(layers))


def score(value: float, interval: float | None) -> str:
    """Write a score, with the half width of its interval if there is one."""
    return f"{value:.3f}" if interval is None else f"{value:.3f} ± {interval:.3f}"


def state_line(progress: StudyProgress) -> str:
    """Return the state of a study in a line: runs, time, statuses, and the best candidate."""
    done, total, best = progress.done, progress.total, progress.best
    of = "" if total is None else f" of {total} runs ({min(1, done / total if total else 1):.0%})"
    parts = [
        f"study {progress.study}",
        f"{done}{of or ' runs'}",
        format_clock(progress.elapsed_s),
        f"ETA {'-' if progress.eta_s is None else format_clock(progress.eta_s)}",
        *(f"{n} {status}" for status, n in progress.statuses.items() if status != "done"),
    ]
    if best is not None:
        lacks = f" ({len(best.missing)} runs missing)" if best.missing else ""
        bits = best.measures.get("val_bits_per_byte")
        own = best.selection_score if best.objective is None else best.score
        value = score(own, best.interval) if bits is None else f"{bits:.3f} bits/byte"
        beyond = ", beyond its limits" * bool(best.beyond)
        parts.append(f"best {value}{lacks}{beyond} {compact(best.layers)}")
    return "  ".join(parts)


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
                reason = f": {printable(trouble.reason)}" if trouble.reason else ""
                layers = compact(trouble.candidate.split())
                line.tell(f"{trouble.status}  {trouble.title}{reason}  {layers}")
            troubles = len(progress.troubles)
            line.show(state_line(progress))
            if not line.live and time.monotonic() >= line_at:
                line_at = time.monotonic() + EVERY_S
                line.tell(state_line(progress))

        yield show
