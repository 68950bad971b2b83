"""Figures of runs as PNG files: curves on three axes, staleness, workers over time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxhog.report.charts import LIGHT, blank, panel, png, style, title
from mlxhog.report.history import buckets, ends, thin
from mlxhog.report.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

POINTS = 2000
CURVES = (
    ("bits per byte", ("train_bits_per_byte", "val_bits_per_byte", "final_bits_per_byte")),
    ("tokens per second", ("tokens_per_s",)),
)
TRAINING: dict[str, Any] = {"lw": 1.2}
HELD_OUT: dict[str, Any] = {"lw": 1.0, "ls": "--", "marker": "o", "ms": 3.5}
LARGER: dict[str, Any] = {"ls": "", "marker": "*", "ms": 9}
"""Styles of training, held-out text and the larger final score, in the color of the run."""
LABELS = {"elapsed_s": "training time", "tokens": "samples", "updates": "updates"}
MOST_LAGS = 24
"""Bars of a histogram; the last one also counts larger values."""
STATE_INKS = {"running": 0, "starting": 4, "dead": 1}


def figures(records: Sequence[RunRecord]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each PNG file for which the runs have numbers."""
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
"""Quantity of the horizontal axis -> its column."""
UNITS = {"time": "training time", "steps": "steps", "tokens": "tokens"}


def _in_units(end_s: float) -> tuple[float, str]:
    """The unit for times up to `end_s`: its seconds, and its name."""
    return (1, "s") if end_s < 300 else (60, "min") if end_s < 3 * 3600 else (3600, "h")


def _end_s(records: Sequence[RunRecord]) -> float:
    return max(record.last("elapsed_s") or 0.0 for record in records)


def losses(records: Sequence[RunRecord], over: str) -> bytes:
    """Return a PNG file with the bits per byte of all runs; dots are held-out text.

    A star is the final score, on more held-out text than the dots.

    Args:
        records: records of runs that have metrics.
        over: one of `AXES`.
    """
    figure, axes = panel(LIGHT, 8.0, 4.6)
    divisor, unit = _in_units(_end_s(records)) if over == "time" else (1, "")
    for k, record in enumerate(records):
        ink = LIGHT.inks[k % len(LIGHT.inks)]
        xs, train, held_out = (
            record.history.column(name)
            for name in (AXES[over], "train_bits_per_byte", "val_bits_per_byte")
        )
        xs, starts = xs / divisor, buckets(len(xs), POINTS)
        trained, scored = ~np.isnan(train), ~np.isnan(held_out)
        if starts is None:
            axes.plot(xs[trained], train[trained], color=ink, **TRAINING)
        else:
            axes.plot(ends(xs, starts), thin(train, starts), color=ink, **TRAINING)
        if scored.any():
            axes.plot(xs[scored], held_out[scored], color=ink, **HELD_OUT)
        final = record.history.column("final_bits_per_byte")
        if (ended := ~np.isnan(final)).any():
            axes.plot(xs[ended], final[ended], color=ink, **LARGER)
    axes.set_xlabel(f"{UNITS[over]}, {unit}" if unit else UNITS[over])
    axes.set_ylabel("bits per byte")
    title(axes, LIGHT, f"bits per byte of {_subject(records)}")
    axes.legend(handles=_keys(records), **_PLAIN)
    return png(figure)


_PLAIN: dict[str, Any] = {
    "loc": "upper right",
    "frameon": False,
    "fontsize": 8,
    "labelcolor": LIGHT.ink,
}


def _subject(records: Sequence[RunRecord]) -> str:
    return records[0].run.name if len(records) == 1 else f"{len(records)} runs"


def _keys(records: Sequence[RunRecord]) -> list[Line2D]:
    """The entries of the legend: the kinds of lines, and the color of each of several runs."""
    from matplotlib.lines import Line2D

    inks = [LIGHT.inks[k % len(LIGHT.inks)] for k in range(len(records))]
    ink = inks[0] if len(records) == 1 else LIGHT.ink
    has_scores = any(record.last("val_bits_per_byte") is not None for record in records)
    kinds = [("training", TRAINING), *([("held-out", HELD_OUT)] if has_scores else [])]
    if larger := [each.larger_score for each in records if each.larger_score is not None]:
        shares = dict.fromkeys(share for _, share in larger)
        kinds.append((f"held-out, {' or '.join(shares)}", LARGER))
    runs = zip(records, inks, strict=True) if len(records) > 1 else ()
    return [
        *(Line2D([], [], color=color, label=record.run.name, lw=3) for record, color in runs),
        *(Line2D([], [], color=ink, label=label, **style) for label, style in kinds),
    ]


def _curves(records: Sequence[RunRecord]) -> Figure:
    """A row per quantity, a column per axis: time, samples, updates."""
    figure = blank(LIGHT, 11.0, 6.4)
    time_unit_s, unit = _in_units(_end_s(records))
    grid = figure.subplots(len(CURVES), len(LABELS), squeeze=False, sharex="col", sharey="row")
    for row, (text, quantities) in enumerate(CURVES):
        for column, (name, label) in enumerate(LABELS.items()):
            axes = grid[row][column]
            style(axes, LIGHT)
            for k, record in enumerate(records):
                ink = LIGHT.inks[k % len(LIGHT.inks)]
                divisor = {"elapsed_s": time_unit_s, "tokens": record.seq_len}.get(name, 1)
                _lines(axes, record, name, quantities, ink, divisor)
            if row == len(CURVES) - 1:
                axes.set_xlabel(f"{label}, {unit}" if name == "elapsed_s" else label)
            if column == 0:
                axes.set_ylabel(text)
    figure.suptitle(f"curves of {_subject(records)}", color=LIGHT.ink, fontsize=11)
    grid[0][-1].legend(handles=_keys(records), **_PLAIN)
    return figure


def _lines(
    axes: Axes, record: RunRecord, name: str, quantities: Sequence[str], ink: str, divisor: float
) -> None:
    """Draw quantities of one run over the axis `name`; the first one is of training."""
    curves = record.history.drawn(POINTS)
    xs = np.array(curves.axes[name], dtype=float) / divisor
    for k, quantity in enumerate(quantities):
        ys = np.array(curves.of_run[quantity], dtype=float)  # None becomes NaN
        known = ~np.isnan(ys)
        axes.plot(xs[known], ys[known], color=ink, **(TRAINING, HELD_OUT, LARGER)[k])


def _staleness(record: RunRecord) -> Figure:
    figure, axes = panel(LIGHT, 7.5, 3.6)
    counts: Counter[int] = Counter()
    for slot in record.history.workers:
        counts += record.history.staleness(slot)
    steps = max(sum(counts.values()), 1)
    shares = [0.0] * (min(max(counts, default=0), MOST_LAGS) + 1)
    for lag, n in counts.items():
        shares[min(lag, len(shares) - 1)] += n / steps
    axes.bar(range(len(shares)), shares, color=LIGHT.inks[0])
    axes.axvline(record.others, color=LIGHT.inks[1], lw=1.5)
    axes.annotate(
        f"P-1 = {record.others}", (record.others, 1.0), xycoords=("data", "axes fraction"),
        xytext=(4, -9), textcoords="offset points", fontsize=8, color=LIGHT.inks[1],
    )  # fmt: skip
    axes.set_xlabel("updates by others between a step's read and write")
    axes.set_ylabel("share of steps")
    title(axes, LIGHT, f"staleness of {record.run.name}")
    return figure


def _workers(record: RunRecord) -> Figure:
    slots = sorted(record.history.workers)
    figure, axes = panel(LIGHT, 7.5, 1.6 + 0.35 * len(slots))
    end_s = max([*(span.end_s for span in record.history.spans), math.ulp(1.0)])
    divisor, unit = _in_units(end_s)
    states: set[str] = set()
    for span in record.history.spans:
        inks = STATE_INKS.get(span.state)
        label = span.state if span.state not in states and span.end_s > span.begin_s else None
        states |= {span.state} if label else set()
        axes.barh(
            slots.index(span.slot),
            max(span.end_s - span.begin_s, 0.0) / divisor,
            left=span.begin_s / divisor,
            color=LIGHT.faint if inks is None else LIGHT.inks[inks],
            label=label,
            edgecolor=LIGHT.paper,
        )
    for event in record.events:
        if event.kind == "checkpoint" and event.elapsed_s is not None:
            axes.axvline(event.elapsed_s / divisor, color=LIGHT.ink, lw=0.8, ls=":")
    names = [f"{slot} {record.history.workers[slot].backend}" for slot in slots]
    axes.set_yticks(range(len(slots)), names)
    axes.invert_yaxis()
    has_checkpoints = any(event.kind == "checkpoint" for event in record.events)
    axes.set_xlabel(f"training time, {unit}" + "; dotted lines are checkpoints" * has_checkpoints)
    axes.set_xlim(0, end_s / divisor)
    title(axes, LIGHT, f"workers of {record.run.name}")
    figure.legend(**_PLAIN | {"loc": "outside lower left", "ncols": 4})
    return figure
