"""A study on a terminal, redrawn while it runs; no line of it ever wraps."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlxhog.config.quantities import format_clock
from mlxhog.mad.report.board import accuracy, best, heading, short, steps, told
from mlxhog.mad.report.leaderboard import lines
from mlxhog.mad.report.ranking import Ranking
from mlxhog.mad.study.progress import ActiveRun, StudyProgress
from mlxhog.report.views import LiveView

TROUBLES = 3
"""Failures shown at once, the latest; the board's plain lines and the page have all of them."""
_GAP = 2
_ROOM_FOR_RUNS = 40
"""Columns of text below which only the layers of a run are shown."""


class LiveBoard(LiveView[StudyProgress]):
    """The picture of a study."""

    def picture(self, progress: StudyProgress) -> Picture:
        """Return the newest state as a renderable."""
        return Picture(progress)


class Picture:
    """A renderable that fits whatever width the terminal has at the moment it is drawn."""

    def __init__(self, progress: StudyProgress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield heading, bar, best, runs and failures."""
        progress, width = self._progress, options.max_width
        yield _line(heading(progress), "bold")
        if progress.fraction is not None:
            bar = ProgressBar(total=1.0, completed=progress.fraction, width=min(64, width))
            yield Padding(bar, 0)  # which ends its line
        yield _line(best(progress.best, width), "cyan")
        if progress.running:
            yield _runs(progress.running, width)
        for trouble in progress.troubles[-TROUBLES:]:
            yield _line(told(trouble), "red" if trouble.status == "failed" else "yellow")


class Leaderboard:
    """A renderable leaderboard, as many columns and candidates as there is room for."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield a line of text each."""
        heading, *rest = lines(self._ranking, options.max_width, console.height)
        yield _line(heading, "bold")
        for number, text in enumerate(rest):
            yield _line(text, "" if number or not self._ranking.rows else "dim")


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _runs(running: tuple[ActiveRun, ...], width: int) -> Table:
    """Numbers get what they need; what is left is shared by the layers and the run's name."""
    numbers = [
        (run.worker, steps(run.step, run.steps), accuracy(run.acc_token), format_clock(run.seconds))
        for run in running
    ]
    header = ("worker", "step", "acc", "time")
    needed = [max(map(len, column)) for column in zip(header, *numbers, strict=True)]
    room = width - sum(needed) - _GAP * len(needed)
    whole = room >= _ROOM_FOR_RUNS
    layers = (room - _GAP) // 2 if whole else room
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    table.add_column(header[0], no_wrap=True, overflow="ellipsis")
    for name in ("layers", "run")[: 2 if whole else int(room > 0)]:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in header[1:]:
        table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right")
    for run, (worker, *rest) in zip(running, numbers, strict=True):
        texts = [short(run.candidate, layers), short_run(run.run, room - _GAP - layers)]
        table.add_row(worker, *texts[: 2 if whole else int(room > 0)], *rest)
    return table


def short_run(name: str, width: int) -> str:
    """Cut the name of a run at its end."""
    return name if len(name) <= width else name[: max(0, width - 1)] + "…"
