"""Progress of a training run as a live table with a scale of bits per byte."""

import importlib
import math
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlxhog.report.machines import IN_QUORUM
from mlxhog.report.metrics import (
    REFERENCE_BITS_PER_BYTE,
    WORKER_COLUMNS,
    Progress,
    heading,
    losses,
)
from mlxhog.report.streams import console, printable
from mlxhog.report.views import RunView

SAMPLE_WIDTH = 400
GAP = 2  # columns between those of the table
WIDTH = 64  # columns of the bar and the scale, unless the terminal has fewer
BEST = 1.5  # largest value at the right end of the scale; a better model is at the end
BELOW = 0.82  # the right end is at most this multiple of the best reference
LEGEND = """\
arena      the block of shared memory with the parameters
snapshot   a worker's copy of the parameters, for which it computes a gradient
staleness  the number of other workers' steps between that copy and the worker's own step"""
STATE_STYLES = {"running": "green", "starting": "yellow", "dead": "red"}
CELL_COLUMNS = 100
CELL = (
    '<pre style="white-space: pre; line-height: 1.3; '
    "font-family: Menlo, 'DejaVu Sans Mono', monospace\">{code}</pre>"
)
"""Width and HTML of the output of a notebook's cell."""


class LiveTable(RunView):
    """The picture of a run, redrawn below the messages; terms are explained once, above it.

    In a notebook the output of the cell is replaced; rich's `Live` would need `ipywidgets` there.

    Args:
        screen: a rich console on a terminal; None is the output of a notebook's cell.
    """

    def __init__(self, screen: Console | None) -> None:
        self._screen = screen
        self._live = None if screen is None else Live(console=screen, auto_refresh=False)
        self._messages: list[Text] = []
        self._picture: RenderableType = ""
        self._sample: str | None = None
        self._cell: Any = None  # IPython's handle of the output

    def __enter__(self) -> Self:
        """Take over the terminal; a cell's output begins with the first message."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the output back; the last picture stays."""
        if self._live is not None:
            self._live.stop()

    def show(self, message: str, style: str = "yellow") -> None:
        """Print a message above the picture."""
        text = Text(message, style=style)
        if self._screen is not None:
            self._screen.print(text)
        else:
            self._messages.append(text)
            self._draw_cell()

    def draw(self, progress: Progress) -> None:
        """Redraw the picture; without a new sample it shows the last one."""
        if not self._picture:
            self.show(LEGEND, style="dim")
        self._sample = progress.sample or self._sample
        self._picture = Picture(progress, self._sample)
        if self._live is not None:
            self._live.update(self._picture, refresh=True)
        else:
            self._draw_cell()

    def _draw_cell(self) -> None:
        look: dict[str, Any] = {"color_system": "truecolor", "force_jupyter": False}
        page = console(StringIO(), record=True, width=CELL_COLUMNS, **look)
        page.print(*self._messages, self._picture, sep="\n")
        output = {
            "text/plain": page.export_text(clear=False),
            "text/html": page.export_html(inline_styles=True, code_format=CELL),
        }
        if self._cell is None:
            display = importlib.import_module("IPython.display").display
            self._cell = display(output, raw=True, display_id=True)
        else:
            self._cell.update(output, raw=True)


class Picture:
    """The picture of a run: budget, losses, scale, workers, sample; no wider than the terminal."""

    def __init__(self, progress: Progress, sample: str | None = None) -> None:
        self._progress, self._sample = progress, sample

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts."""
        progress, width = self._progress, min(WIDTH, options.max_width)
        doing = [str(progress.doing)] if progress.doing else []
        yield Text("   ".join([*heading(progress), *doing]), style="bold")
        yield Padding(ProgressBar(total=1.0, completed=progress.budget_fraction, width=width), 0)
        yield Text("   ".join(losses(progress)))
        yield from _scale(progress, width)
        yield _workers(progress, options.max_width)
        for one in progress.machines:
            style = "green" if one.state == IN_QUORUM else "yellow"
            yield Text(f"{one.name}{' (this one)' * one.is_own}  {one}", style=style)
        if self._sample:
            text = f"sample> {printable(self._sample)[:SAMPLE_WIDTH]}"
            yield Text(text, style="italic")


def _scale(progress: Progress, width: int) -> Iterator[Text]:
    held_out = progress.val_bits_per_byte
    value = progress.train_bits_per_byte if held_out is None else held_out
    for line in scale(value, width=width, references=progress.marks):
        text = Text(line, style="dim")
        if line.strip("-|o") == "":  # the axis
            text.highlight_regex("o", "bold not dim cyan")
        yield text


_WORDS = ("worker", "backend", "state")
"""Columns that are aligned to the left."""
_DROPPED_FIRST = ("dropped", "memory", "staleness mean / max", "state", "backend")
"""Columns that a narrow window drops, in this order."""


def _workers(progress: Progress, width: int) -> Table:
    columns = {name: [cell(one) for one in progress.workers] for name, cell in WORKER_COLUMNS}
    widths = {name: max(map(len, [name, *cells])) + GAP for name, cells in columns.items()}
    for name in _DROPPED_FIRST:
        if sum(widths[one] for one in columns) - GAP > width:
            del columns[name]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
    return table


def scale(
    value: float | None,
    *,
    width: int = WIDTH,
    references: Mapping[str, float] = REFERENCE_BITS_PER_BYTE,
) -> tuple[str, str, str]:
    """Draw a logarithmic scale from the worst reference on the left to about `BEST` on the right.

    Args:
        value: bits per byte to mark, or None for the bare scale.
        width: columns.
        references: bits per byte of the marks, by their names.

    Returns:
        Three lines of at most `width` columns: names, axis with `o` at the value, numbers.
    """
    worst, best = max(references.values()), min(BEST, BELOW * min(references.values()))

    def column(bits: float) -> int:
        share = math.log(worst / max(bits, best)) / math.log(worst / best)
        return round(max(0.0, share) * (width - 1))

    axis = ["-"] * width
    names, numbers = dict[int, str](), dict[int, str]()
    for name, bits in references.items():
        at = column(bits)
        axis[at], names[at], numbers[at] = "|", name, f"{bits:.2f}"
    if value is not None and math.isfinite(value):
        axis[column(value)] = "o"
    return _place(names, width), "".join(axis), _place(numbers, width)


def _place(words: Mapping[int, str], width: int) -> str:
    """Put words at their columns; a word that would touch the previous one is skipped."""
    line = ""
    for column, word in sorted(words.items()):
        start = min(column, width - len(word))
        if start >= len(line) + bool(line):
            line = line.ljust(start) + word
    return line
