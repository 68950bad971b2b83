"""The picture of `mlxhog plot`: the losses of runs as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxhog.report.charts import LIGHT, legend_below, panel, png
from mlxhog.report.record import RunRecord

TRAINING: dict[str, Any] = {"lw": 1.2}
HELD_OUT: dict[str, Any] = {"lw": 1.0, "ls": "--", "marker": "o", "ms": 3.5}
LARGER: dict[str, Any] = {"ls": "", "marker": "*", "ms": 9}
"""Styles of training, held-out text and the larger final score, in the color of the run."""
AXES = {
    "time": ("elapsed_s", "training time, {unit}"),
    "steps": ("step", "steps"),
    "tokens": ("tokens", "tokens"),
}
"""Quantity of the horizontal axis -> its column and its label."""


def losses(records: Sequence[RunRecord], over: str) -> bytes:
    """Return a PNG file with the bits per byte of all runs; dots are held-out text.

    A star is the final score, on more held-out text than the dots.

    Args:
        records: records of runs that have metrics.
        over: one of `AXES`.
    """
    figure, axes = panel(LIGHT, 8.0, 4.6)
    end_s = max(record.last("elapsed_s") or 0.0 for record in records)
    unit, size = ("s", 1) if end_s < 300 else ("min", 60) if end_s < 10800 else ("h", 3600)
    column, axis = AXES[over]
    alone = len(records) == 1
    for k, record in reversed(list(enumerate(records))):  # the legend begins with the last line
        xs = record.history.column(column) / (size if over == "time" else 1)
        larger = f"held-out, {record.larger_score[1]}" if record.larger_score else ""
        for name, label, style in (
            ("final_bits_per_byte", larger, LARGER),
            ("val_bits_per_byte", "held-out", HELD_OUT),
            ("train_bits_per_byte", "training", TRAINING),
        ):
            ys = record.history.column(name)
            known = ~np.isnan(ys)
            if known.any():
                ink = LIGHT.inks[k % len(LIGHT.inks)]
                label = label if alone else f"{record.run.name}: {label}"
                axes.plot(xs[known], ys[known], color=ink, label=label, **style)
    axes.set(xlabel=axis.format(unit=unit), ylabel="bits per byte")
    subject = records[0].run.name if alone else f"{len(records)} runs"
    axes.set_title(f"bits per byte of {subject}", loc="left", color=LIGHT.ink, fontsize=10)
    legend_below(axes, LIGHT)
    return png(figure)
