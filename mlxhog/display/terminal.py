"""Show a training run as a live table with a scale of bits per byte."""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner as Dots
from rich.table import Table
from rich.text import Text

from mlxhog.base.output import lasting
from mlxhog.display.metrics import WORKER_COLUMNS
from mlxhog.display.plain import RunView, heading, losses
from mlxhog.display.streams import printable_lines
from mlxhog.progress import IN_QUORUM, Progress

SAMPLE_WIDTH, SAMPLE_LINES = 400, 8
WIDTH = 64  # columns of the bar and the scale, unless the terminal has fewer
BEST = 1.5  # largest value at the right end of the scale; a better model is at the end
BELOW = 0.82  # the right end is at most this multiple of the best reference
LEGEND = Text(
    """\
arena      the block of shared memory with the parameters
snapshot   a worker's copy of the parameters, for which it computes a gradient
staleness  the number of other workers' steps between that copy and the worker's own step""",
    style="dim",
)
STATE_STYLES = {"running": "green", "starting": "yellow", "dead": "red"}


class _Live(Live):
    """A live display that skips frames while the terminal takes no text."""

    def __init__(self, screen: Console, *, transient: bool = False) -> None:
        self._stream = lasting(screen.file)
        super().__init__(console=screen, auto_refresh=transient, transient=transient)

    def refresh(self) -> None:
        """Draw the newest state."""
        if not self._stream.is_behind:
            super().refresh()

    def stop(self) -> None:
        """Draw the last state and release the terminal, in bounded time."""
        self._stream.drain()
        super().stop()
        self._stream.drain()


class Spinner(_Live):
    """One line of the terminal that changes, and disappears at the end."""

    def __init__(self, screen: Console) -> None:
        super().__init__(screen, transient=True)
        self._dots = Dots("dots", style="status.spinner")
        self.update(self._dots)

    def show(self, text: str) -> None:
        """Replace the text of the line."""
        self._dots.update(text=Text(text))  # not markup: names may hold brackets


class LiveTable(RunView):
    """The picture of a run, redrawn below the messages, with a legend above."""

    def __init__(self, screen: Console) -> None:
        self._live = _Live(screen)
        self._is_drawn = False

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, message: str) -> None:
        """Print a message above the picture."""
        self._live.console.print(Text(message, style="yellow"))

    def draw(self, progress: Progress) -> None:
        """Redraw the picture."""
        if not self._is_drawn:
            self._live.console.print(LEGEND)
        self._is_drawn = True
        self._live.update(Picture(progress), refresh=True)


class Cell(RunView):
    """The live table in a notebook's cell, where rich's `Live` would need `ipywidgets`."""

    def __init__(self) -> None:
        self._above = [LEGEND]
        self._output: Any = None  # IPython's handle

    def show(self, message: str) -> None:
        """Add a message above the picture."""
        self._above.append(Text(message, style="yellow"))

    def draw(self, progress: Progress) -> None:
        """Replace the output."""
        picture = Picture(progress, self._above)
        if self._output is None:
            display = importlib.import_module("IPython.display").display
            self._output = display(picture, display_id=True)
        else:
            self._output.update(picture)


class Picture(JupyterMixin):
    """The picture of a run: budget, losses, scale, workers, sample."""

    def __init__(self, progress: Progress, above: Sequence[Text] = ()) -> None:
        self._progress, self._above = progress, above

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts."""
        progress, width = self._progress, min(WIDTH, options.max_width)
        yield from self._above
        phase = [str(progress.phase)] if progress.phase else []
        yield Text("   ".join([*heading(progress), *phase]), style="bold")
        yield Padding(ProgressBar(total=1.0, completed=progress.budget_fraction, width=width), 0)
        yield Text("   ".join(losses(progress)))
        validation = progress.val_bits_per_byte
        value = progress.train_bits_per_byte if validation is None else validation
        names, axis, numbers = scale(value, progress.baselines, width=width)
        marked = Text(axis, style="dim")
        marked.highlight_regex("o", "bold not dim cyan")
        yield from (Text(names, style="dim"), marked, Text(numbers, style="dim"))
        yield _workers(progress, options.max_width)
        for one in progress.machines:
            style = "green" if one.state == IN_QUORUM else "yellow"
            yield Text(f"{one.name}{' (this one)' * one.is_own}  {one}", style=style)
        if progress.sample:
            lines = printable_lines(progress.sample[:SAMPLE_WIDTH]).split("\n")[:SAMPLE_LINES]
            yield Text("\n".join(["sample> " + lines[0], *lines[1:]]), style="italic")


_LEFT = ("worker", "backend", "state")  # columns that are aligned to the left
_NARROW, _FEW = 80, ("worker", "backend", "steps", "tok/s")
"""Below this width only these columns are shown."""


def _workers(progress: Progress, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = [one for one in WORKER_COLUMNS if width >= _NARROW or one[0] in _FEW]
    for name, _ in columns:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    for worker in progress.workers:
        cells = (cell(worker) for _, cell in columns)
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in cells))
    return table


def scale(
    value: float | None, references: Mapping[str, float], *, width: int = WIDTH
) -> tuple[str, str, str]:
    """Draw a logarithmic scale from the worst reference on the left to about `BEST` on the right.

    Returns:
        Three lines of at most `width` columns: names, axis with `o` at the value, numbers. A label
        that would touch the one before it is left out.
    """
    worst, best = max(references.values()), min(BEST, BELOW * min(references.values()))

    def column(bits: float) -> int:
        share = math.log(worst / max(bits, best)) / math.log(worst / best)
        return round(max(0.0, share) * (width - 1))

    def placed(line: str, column: int, word: str) -> str:
        start = min(column, width - len(word))
        return line.ljust(start) + word if start >= len(line) + bool(line) else line

    axis, names, numbers = ["-"] * width, "", ""
    for name, bits in sorted(references.items(), key=lambda one: -one[1]):
        at = column(bits)
        axis[at] = "|"
        names, numbers = placed(names, at, name), placed(numbers, at, f"{bits:.2f}")
    if value is not None and math.isfinite(value):
        axis[column(value)] = "o"
    return names, "".join(axis), numbers
