"""The board of a running study: plain lines, or on a terminal lines that are redrawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from mlxhog.base.quantities import format_clock
from mlxhog.mad.study.scheduler import StudyProgress
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.study.workers import Running
from mlxhog.report.streams import printable
from mlxhog.report.views import LineView, LiveView

if TYPE_CHECKING:
    from rich.console import RenderableType

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


def run_line(run: Running) -> str:
    """Return the line of a run in progress."""
    step, most = run.point.step if run.point else 0, run.plan.protocol.steps
    acc = accuracy(run.point.acc_token if run.point else None)
    clock = format_clock(time.monotonic() - run.began_s)
    steps = f"{step}/{most}" if most else f"{step}"
    layers = folded(run.plan.candidate.split())
    return f"{run.worker}: {clock}  step {steps}  acc {acc}  {run.plan.title}  {layers}"


def trouble_line(trouble: StudyRecord) -> str:
    """Return the line of a run that failed or diverged."""
    reason = f": {printable(trouble.reason)}" if trouble.reason else ""
    return f"{trouble.status}  {trouble.title}{reason}  {folded(trouble.candidate.split())}"


class PlainBoard(LineView[StudyProgress]):
    """A view of a study that writes lines at times, and every message and failure once."""

    def __init__(
        self, stream: TextIO, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, every_s, clock)
        self._shown: tuple[object, ...] = ()
        self._troubles = 0

    def news(self, progress: StudyProgress) -> Iterator[str]:
        """Yield new failures, and the state after new steps."""
        yield from map(trouble_line, progress.troubles[self._troubles :])
        self._troubles = len(progress.troubles)
        news = (progress.done, progress.total, *(run.point for run in progress.running))
        if news != self._shown and self.due():
            self._shown = news
            yield f"{heading(progress)}  {best(progress)}"
            yield from map(run_line, progress.running)


TROUBLES = 3
"""The latest failures on the live board; the plain lines and the page have all."""
STYLES = {"failed": "red", "diverged": "yellow"}


class LiveBoard(LiveView[StudyProgress]):
    """The same lines, redrawn; none wraps."""

    def picture(self, progress: StudyProgress) -> RenderableType:
        """Return the newest state as a renderable."""
        from rich.console import Group  # 50 ms, only to draw
        from rich.text import Text

        lines = [(heading(progress), "bold"), (best(progress), "cyan")]
        lines += [(run_line(run), "") for run in progress.running]
        troubles = progress.troubles[-TROUBLES:]
        lines += [(trouble_line(one), STYLES[one.status]) for one in troubles]
        return Group(
            *(Text(text, style, no_wrap=True, overflow="ellipsis") for text, style in lines)
        )
