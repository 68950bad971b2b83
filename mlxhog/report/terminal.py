"""Progress as a live table on a terminal."""

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlxhog.config.quantities import format_bytes, format_clock, format_count
from mlxhog.report.live_view import LiveView
from mlxhog.report.metrics import ANY_TEXT, REFERENCE_BITS_PER_BYTE, Progress, label
from mlxhog.report.plain import eta, number, rate
from mlxhog.report.printable import printable
from mlxhog.report.scale import scale

SAMPLE_WIDTH = 400
STATE_STYLES = {"running": "green", "starting": "yellow", "dead": "red"}


class LiveTable(LiveView[Progress]):
    """The picture of a run, with the newest sample.

    Args:
        console: a rich console on a terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._sample: str | None = None

    def picture(self, progress: Progress) -> RenderableType:
        """See `LiveView.picture`."""
        self._sample = progress.sample or self._sample
        return render(progress, self._sample)


def render(progress: Progress, sample: str | None = None) -> RenderableType:
    """Return the picture of a run: budget, losses, scale, workers, sample."""
    parts: list[RenderableType] = [
        _heading(progress),
        Padding(ProgressBar(total=1.0, completed=progress.budget_fraction, width=64), 0),
        _losses(progress),
        *_scale(progress),
        _workers(progress),
    ]
    if sample:
        parts.append(Text(f"sample> {printable(sample)[:SAMPLE_WIDTH]}", style="italic"))
    return Group(*parts)


def _heading(progress: Progress) -> Text:
    return Text(
        f"step {progress.step}   {format_clock(progress.elapsed_s)} "
        f"({progress.budget_fraction:.0%})   ETA {eta(progress)}   "
        f"{format_count(progress.tokens)} tokens   {format_count(progress.tokens_per_s)} tok/s   "
        f"memory {format_bytes(progress.memory_bytes)}"
        + (f"   {progress.doing}" if progress.doing else ""),
        style="bold",
    )


def _losses(progress: Progress) -> Text:
    return Text(
        f"loss {number(progress.loss)}   "
        f"bits/byte: train {number(progress.train_bits_per_byte)}, "
        f"held-out {number(progress.val_bits_per_byte)}   "
        f"lost updates {rate(progress.lost_update_rate)}   "
        f"{label(progress.gpu_write, progress.kernels)}".rstrip()
    )


def _scale(progress: Progress) -> tuple[Text, Text, Text]:
    shown = progress.val_bits_per_byte
    value = progress.train_bits_per_byte if shown is None else shown
    names, axis, numbers = scale(
        value, references=REFERENCE_BITS_PER_BYTE if progress.marks else ANY_TEXT
    )
    drawn = Text(axis, style="dim")
    if "o" in axis:
        drawn.stylize("bold not dim cyan", axis.index("o"), axis.index("o") + 1)
    return Text(names, style="dim"), drawn, Text(numbers, style="dim")


def _workers(progress: Progress) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("worker", "backend", "state"):
        table.add_column(title, no_wrap=True)
    for title in ("steps", "tok/s", "staleness mean / max", "dropped", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    for worker in progress.workers:
        table.add_row(
            str(worker.slot),
            worker.backend,
            Text(worker.state, style=STATE_STYLES.get(worker.state, "")),
            str(worker.steps),
            format_count(worker.tokens_per_s),
            f"{worker.mean_staleness:.1f} / {worker.max_staleness}",
            str(worker.dropped),
            format_bytes(worker.memory_bytes),
        )
    return table
