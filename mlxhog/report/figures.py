"""The picture of `mlxhog plot`: the losses of runs as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxhog.report.charts import LIGHT, panel, png, title
from mlxhog.report.history import buckets, ends, thin
from mlxhog.report.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

POINTS = 2000
TRAINING: dict[str, Any] = {"lw": 1.2}
HELD_OUT: dict[str, Any] = {"lw": 1.0, "ls": "--", "marker": "o", "ms": 3.5}
LARGER: dict[str, Any] = {"ls": "", "marker": "*", "ms": 9}
"""Styles of training, held-out text and the larger final score, in the color of the run."""
AXES = {"time": "elapsed_s", "steps": "step", "tokens": "tokens"}
"""Quantity of the horizontal axis -> its column."""
UNITS = {"time": "training time", "steps": "steps", "tokens": "tokens"}


def losses(records: Sequence[RunRecord], over: str) -> bytes:
    """Return a PNG file with the bits per byte of all runs; dots are held-out text.

    A star is the final score, on more held-out text than the dots.

    Args:
        records: records of runs that have metrics.
        over: one of `AXES`.
    """
    figure, axes = panel(LIGHT, 8.0, 4.6)
    divisor, unit = 1, ""
    if over == "time":
        end_s = max(record.last("elapsed_s") or 0.0 for record in records)
        divisor, unit = (1, "s") if end_s < 300 else (60, "min") if end_s < 10800 else (3600, "h")
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
    subject = records[0].run.name if len(records) == 1 else f"{len(records)} runs"
    title(axes, LIGHT, f"bits per byte of {subject}")
    axes.legend(
        handles=_keys(records), loc="upper right", frameon=False, fontsize=8, labelcolor=LIGHT.ink
    )
    return png(figure)


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
