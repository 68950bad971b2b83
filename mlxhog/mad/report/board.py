"""The board of a running study: plain lines, or on a terminal a picture that is redrawn.

No line of the picture wraps. rich, which takes 50 ms, is imported only to draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from mlxhog.base.quantities import format_clock
from mlxhog.mad.study.progress import ActiveRun, Best, StudyProgress
from mlxhog.mad.study.store import StudyRecord
from mlxhog.report.streams import printable
from mlxhog.report.views import LineView, LiveView

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

ELLIPSIS = "…"


def folded(layers: Sequence[str]) -> str:
    """Write a sequence with counted repeats: (mlstm swiglu)*7 slstm swiglu."""
    parts: list[str] = []
    i = 0
    while i < len(layers):
        size, times = _repeat(layers, i)
        group = " ".join(layers[i : i + size])
        if times == 1:
            parts.append(group)
        else:
            parts.append(f"({group})*{times}" if size > 1 else f"{group}*{times}")
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


def short(candidate: str, width: int) -> str:
    """Return a canonical string: folded if it is too long, then cut in the middle."""
    if len(candidate) <= width:
        return candidate
    text = folded(candidate.split())
    if len(text) <= width:
        return text
    if width <= 1:
        return ELLIPSIS[:width]
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + ELLIPSIS + text[len(text) - tail :]


class PlainBoard(LineView[StudyProgress]):
    """A view of a study that writes a line at times, and every message and failure once."""

    def __init__(
        self, stream: TextIO, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, every_s, clock)
        self._shown: tuple[object, ...] = ()
        self._troubles = 0

    def news(self, progress: StudyProgress) -> Iterator[str]:
        """Yield new failures, and the state after new steps."""
        for trouble in progress.troubles[self._troubles :]:
            yield trouble_line(trouble)
        self._troubles = len(progress.troubles)
        news = (progress.done, progress.total, *(run.point for run in progress.running))
        if news != self._shown and self.due():
            self._shown = news
            yield line(progress)


def line(progress: StudyProgress) -> str:
    """Return the state of a study in one line."""
    running = "  ".join(
        f"[{run.worker} {run.plan.candidate}: {run.plan.title} step {steps(run)} "
        f"acc {_accuracy(run)}]"
        for run in progress.running
    )
    return "  ".join(filter(None, [heading(progress), best(progress.best), running]))


def heading(progress: StudyProgress) -> str:
    """Return the heading: runs, time and statuses."""
    of = "" if progress.total is None else f" of {progress.total}"
    share = "" if progress.fraction is None else f" ({progress.fraction:.0%})"
    eta = "-" if progress.eta_s is None else format_clock(progress.eta_s)
    ends = "  ".join(f"{n} {status}" for status, n in progress.statuses.items() if status != "done")
    parts = [
        f"study {progress.study}",
        f"{progress.done}{of} runs{share}",
        format_clock(progress.elapsed_s),
        f"ETA {eta}",
        ends,
    ]
    return "  ".join(filter(None, parts))


def best(top: Best | None, width: int | None = None) -> str:
    """Return the best candidate so far; its layers are shortened to fit `width` columns."""
    if top is None:
        return "best -"
    number = f"best {score(top.score, top.interval)}"
    lacks = f" ({top.missing} runs missing)" if top.missing else ""
    if width is None:
        return f"{number} {top.candidate}{lacks}"
    return f"{number} {short(top.candidate, width - len(number) - len(lacks) - 1)}{lacks}"


def trouble_line(trouble: StudyRecord) -> str:
    """Return the line of a run that failed or diverged."""
    reason = f": {printable(trouble.reason)}" if trouble.reason else ""
    return f"{trouble.status}  {trouble.title}{reason}  {folded(trouble.candidate.split())}"


def score(value: float, interval: float | None) -> str:
    """Write a score, with the half width of its interval if there is one."""
    return f"{value:.3f}" if interval is None else f"{value:.3f} ± {interval:.3f}"


def accuracy(value: float | None) -> str:
    """Write an accuracy; None is -."""
    return "-" if value is None else f"{value:.3f}"


def steps(run: ActiveRun) -> str:
    """Write the steps of a run at its last evaluation, and the most."""
    step, most = run.point.step if run.point else 0, run.plan.protocol.steps
    return str(step) if most is None else f"{step}/{most}"


def _accuracy(run: ActiveRun) -> str:
    return accuracy(None if run.point is None else run.point.acc_token)


def cut(text: str, width: int | None) -> str:
    """Cut a text at its end to `width` columns."""
    if width is None or len(text) <= width:
        return text
    return text[: max(0, width - 1)] + ELLIPSIS[:width]


TROUBLES = 3
"""The latest failures in the picture; the plain lines and the page have all."""


class LiveBoard(LiveView[StudyProgress]):
    """The picture of a study."""

    def picture(self, progress: StudyProgress) -> Picture:
        """Return the newest state as a renderable."""
        return Picture(progress)


class Picture:
    """A renderable that fits the width of the terminal at the moment of drawing."""

    def __init__(self, progress: StudyProgress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield heading, bar, best, runs and failures."""
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar

        progress, width = self._progress, options.max_width
        yield styled(heading(progress), "bold")
        if progress.fraction is not None:
            bar = ProgressBar(total=1.0, completed=progress.fraction, width=min(64, width))
            yield Padding(bar, 0)  # it ends the line
        yield styled(best(progress.best, width), "cyan")
        if progress.running:
            yield _runs(progress.running)
        for trouble in progress.troubles[-TROUBLES:]:
            yield styled(trouble_line(trouble), "red" if trouble.status == "failed" else "yellow")


def styled(text: str, style: str) -> Text:
    """Return a line that is cut to the width of the terminal."""
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _runs(running: tuple[ActiveRun, ...]) -> Table:
    """Return the table of runs; layers and titles share the width beside the numbers."""
    from rich.table import Table

    rows = [
        (run.worker, steps(run), _accuracy(run), format_clock(run.seconds),
         folded(run.plan.candidate.split()), run.plan.title)
        for run in running
    ]  # fmt: skip
    header = ("worker", "step", "acc", "time", "layers", "run")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, *cells in zip(header, *rows, strict=True):
        needed = None if name in ("layers", "run") else max(map(len, (name, *cells)))
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=needed)
    for row in rows:
        table.add_row(*row)
    return table
