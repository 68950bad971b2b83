"""Progress of a training run as a live table with a scale of bits per byte."""

import math
from collections.abc import Mapping

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
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
from mlxhog.report.streams import printable
from mlxhog.report.views import LiveView

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


class LiveTable(LiveView[Progress]):
    """The picture of a run, with its newest sample; terms are explained once, above it.

    Args:
        console: a rich console on a terminal; None is the output of a notebook's cell.
    """

    def __init__(self, console: Console | None) -> None:
        super().__init__(console)
        self._sample: str | None = None
        self._explained = False

    def picture(self, progress: Progress) -> RenderableType:
        """Return the table; without a new sample it shows the last one."""
        if not self._explained:
            self._explained = True
            self.show(LEGEND, style="dim")
        self._sample = progress.sample or self._sample
        return Picture(progress, self._sample)


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


def _scale(progress: Progress, width: int) -> tuple[Text, Text, Text]:
    shown = progress.val_bits_per_byte
    value = progress.train_bits_per_byte if shown is None else shown
    names, axis, numbers = scale(value, width=width, references=progress.marks)
    drawn = Text(axis, style="dim")
    if "o" in axis:
        drawn.stylize("bold not dim cyan", axis.index("o"), axis.index("o") + 1)
    return Text(names, style="dim"), drawn, Text(numbers, style="dim")


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
    width: int = 64,
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
    for bits in references.values():
        axis[column(bits)] = "|"
    if value is not None and math.isfinite(value):
        axis[column(value)] = "o"
    names = {column(bits): name for name, bits in references.items()}
    numbers = {column(bits): f"{bits:.2f}" for bits in references.values()}
    return _place(names, width), "".join(axis), _place(numbers, width)


def _place(words: Mapping[int, str], width: int) -> str:
    """Put words at their columns; a word that would touch the previous one is skipped."""
    line = ""
    for column, word in sorted(words.items()):
        start = min(column, width - len(word))
        if start >= len(line) + bool(line):
            line = line.ljust(start) + word
    return line
