"""Figures of runs as PNG files: curves on three axes, staleness, workers over time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlxhog.report.charts import LIGHT, blank, legend, panel, png, style, title
from mlxhog.report.history import buckets, ends, thin
from mlxhog.report.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 2000
CURVES = (
    (
        "bits per byte (dashed: held-out; star: of more of it)",
        ("train_bits_per_byte", "val_bits_per_byte", "final_bits_per_byte"),
    ),
    ("tokens per second", ("tokens_per_s",)),
)
LABELS = {"elapsed_s": "seconds of training", "tokens": "samples", "updates": "updates"}
MOST_LAGS = 24
"""Bars of a histogram; the last one holds what is later."""
STYLES = (("-", ""), ("--", "."), ("", "*"))
"""Line and mark of each quantity of a row of `CURVES`."""
STATE_INKS = {"running": 0, "starting": 4, "dead": 1}


def figures(records: Sequence[Record]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each PNG file: those that the runs have numbers for."""
    trained = [record for record in records if len(record.history)]
    if not trained:
        return
    yield "curves", png(_curves(trained))
    for k, record in enumerate(trained):
        mark = f"-{k + 1}" if len(trained) > 1 else ""
        if record.history.workers:
            yield f"staleness{mark}", png(_staleness(record))
            yield f"workers{mark}", png(_workers(record))


AXES = {"time": "elapsed_s", "steps": "step", "tokens": "tokens"}
"""What curves may be drawn over, and the column of it."""
UNITS = {"time": "seconds of training", "steps": "steps", "tokens": "tokens"}


def losses(records: Sequence[Record], over: str) -> bytes:
    """Return a PNG file of the bits per byte of runs in one picture, held-out text as dots.

    A star is the larger score at the end, of more held-out text than the dots.

    Args:
        records: of runs that have metrics.
        over: one of `AXES`.
    """
    figure, axes = panel(LIGHT, 9.0, 4.8)
    for k, record in enumerate(records):
        ink = LIGHT.inks[k % len(LIGHT.inks)]
        xs, train, held_out = (
            record.history.column(name)
            for name in (AXES[over], "train_bits_per_byte", "val_bits_per_byte")
        )
        starts = buckets(len(xs), POINTS)
        trained, scored = ~np.isnan(train), ~np.isnan(held_out)
        if starts is None:
            axes.plot(xs[trained], train[trained], color=ink, lw=1.0, alpha=0.6)
        else:
            axes.plot(ends(xs, starts), thin(train, starts), color=ink, lw=1.0, alpha=0.6)
        name = record.run.name
        axes.plot(xs[scored], held_out[scored], marker="o", ms=3, lw=1.6, color=ink, label=name)
        final, larger = record.history.column("final_bits_per_byte"), record.larger_score
        if (ended := ~np.isnan(final)).any():
            text = f"{name}: held-out text, {larger[1] if larger else 'more of it'}"
            axes.plot(xs[ended], final[ended], "*", ms=9, color=ink, label=text)
    axes.set_xlabel(UNITS[over])
    axes.set_ylabel("bits per byte; dots: held-out text")
    legend(axes, LIGHT)
    return png(figure)


def _curves(records: Sequence[Record]) -> Figure:
    """A row per quantity, a column per axis: time, samples, updates."""
    figure = blank(LIGHT, 11.0, 6.0)
    grid = figure.subplots(len(CURVES), len(LABELS), squeeze=False)
    for row, (text, quantities) in enumerate(CURVES):
        for column, (name, label) in enumerate(LABELS.items()):
            axes = grid[row][column]
            style(axes, LIGHT)
            for k, record in enumerate(records):
                ink = LIGHT.inks[k % len(LIGHT.inks)]
                _lines(axes, record, name, quantities, ink)
            axes.set_xlabel(label)
            if column == 0:
                axes.set_ylabel(text)
    if len(records) > 1:
        legend(grid[0][-1], LIGHT)
    return figure


def _lines(axes: Axes, record: Record, name: str, quantities: Sequence[str], ink: str) -> None:
    """Draw quantities of one run over the axis `name`, the first one with the run's name."""
    curves = record.history.drawn(POINTS)
    divisor = record.seq_len if name == "tokens" else 1
    xs = np.array(curves.axes[name], dtype=float) / divisor
    for k, quantity in enumerate(quantities):
        ys = np.array(curves.of_run[quantity], dtype=float)  # None becomes NaN
        known = ~np.isnan(ys)
        style, mark = STYLES[k]
        label = None if k else record.run.name
        axes.plot(xs[known], ys[known], style, marker=mark, color=ink, lw=1.2, label=label)


def _staleness(record: Record) -> Figure:
    figure, axes = panel(LIGHT, 7.5, 3.6)
    counts: Counter[int] = Counter()
    for slot in record.history.workers:
        counts += record.history.staleness(slot)
    steps = max(sum(counts.values()), 1)
    shares = [0.0] * (min(max(counts, default=0), MOST_LAGS) + 1)
    for lag, n in counts.items():
        shares[min(lag, len(shares) - 1)] += n / steps
    axes.bar(range(len(shares)), shares, color=LIGHT.inks[0])
    axes.axvline(record.others, color=LIGHT.inks[1], lw=1.5, label=f"P-1 = {record.others}")
    axes.set_xlabel("updates by others between a step's read and write")
    axes.set_ylabel("share of steps")
    title(axes, LIGHT, f"staleness of {record.run.name}")
    legend(axes, LIGHT)
    return figure


def _workers(record: Record) -> Figure:
    slots = sorted(record.history.workers)
    figure, axes = panel(LIGHT, 7.5, 1.4 + 0.35 * len(slots))
    for span in record.history.spans:
        inks = STATE_INKS.get(span.state)
        axes.barh(
            slots.index(span.slot),
            max(span.end_s - span.begin_s, 0.0),
            left=span.begin_s,
            color=LIGHT.faint if inks is None else LIGHT.inks[inks],
            edgecolor=LIGHT.paper,
        )
    for event in record.events:
        if event.kind == "checkpoint" and event.elapsed_s is not None:
            axes.axvline(event.elapsed_s, color=LIGHT.ink, lw=0.8, ls=":")
    names = [f"{slot} {record.history.workers[slot].backend}" for slot in slots]
    axes.set_yticks(range(len(slots)), names)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of training; dotted lines are checkpoints")
    last = [span.end_s for span in record.history.spans]
    axes.set_xlim(0, max([*last, math.ulp(1.0)]))
    title(axes, LIGHT, f"workers of {record.run.name}")
    return figure
