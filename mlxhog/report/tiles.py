"""The tiles at the top of a run's page: its progress and its quality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mlxhog.files.quantities import format_count, format_duration, format_number, format_share
from mlxhog.report.follow import marks_of, progress_of
from mlxhog.report.metrics import COUNTS, number
from mlxhog.report.record import RunEvent, RunRecord

COMPARED = ("gzip", "xz", COUNTS)
MOST_TEXT = 280
"""Characters of the newest sample."""


@dataclass(frozen=True)
class Tile:
    """A number of a run with its name; plain texts.

    Attributes:
        name: such as "tokens/s".
        value: the number, spelled out.
        detail: text below the value, "" for none.
        share: length of a bar, 0 to 1; None for no bar.
        is_text: whether the value is prose, which takes a whole row.
    """

    name: str
    value: str
    detail: str = ""
    share: float | None = None
    is_text: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields, for a page."""
        return asdict(self)


def tiles(record: RunRecord) -> list[Tile]:
    """Return the tiles of a run; a tile without a number yet is left out."""
    return list(_tiles(record))


def without_network(record: RunRecord) -> dict[str, float]:
    """Bits per byte of the run's held-out text without a network, by its compressor or counts."""
    marks = marks_of(record.history.newest)
    return {name: marks[name] for name in COMPARED if name in marks}


def _tiles(record: RunRecord) -> Iterator[Tile]:
    if len(record.history):
        yield from _of_training(record)
    if record.samples:
        sample = record.samples[-1]
        text = sample.text if len(sample.text) <= MOST_TEXT else f"{sample.text[:MOST_TEXT]} ..."
        yield Tile("newest sample", text, _when(sample), is_text=True)


def _of_training(record: RunRecord) -> Iterator[Tile]:
    now, facts = progress_of(record.history.newest), record.facts()
    yield Tile("step", facts["steps"], f"{facts['tokens']} tokens")
    yield Tile("of the budget", format_share(now.budget_fraction), share=now.budget_fraction)
    if not record.is_running:
        yield Tile("training time", facts["training time"])
    elif now.eta_s is not None:
        yield Tile("time left", format_duration(now.eta_s), f"{facts['training time']} trained")
    bits = record.last("val_bits_per_byte")
    if bits is not None:
        beside = ", ".join(
            f"{name} {number(mark)}" for name, mark in without_network(record).items()
        )
        larger = record.larger_score
        details = [
            record.scored_at.strip(),
            beside,
            "" if larger is None else f"{number(larger[0])} of {larger[1]}",
        ]
        yield Tile("held-out bits per byte", number(bits), "; ".join(filter(None, details)))
    speed = format_count(now.tokens_per_s) if record.is_running else facts["tokens/s"]
    n = len(record.history.workers)
    yield Tile("tokens/s", speed, f"{n} worker{'s' * (n != 1)}" if n else "")


def _when(event: RunEvent) -> str:
    time = None if event.elapsed_s is None else f"after {format_duration(event.elapsed_s)}"
    step = None if event.step is None else f"step {format_number(event.step)}"
    return ", ".join(filter(None, [time, step]))
