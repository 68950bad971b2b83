"""The picture of `mlxhog plot`: the losses of runs as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxhog.report.charts import LIGHT, panel, png, title
from mlxhog.report.record import RunRecord

TRAINING: dict[str, Any] = {"lw": 1.2}
HELD_OUT: dict[str, Any] = {"lw": 1.0, "ls": "--", "marker": "o", "ms": 3.5}
LARGER: dict[str, Any] = {"ls": "", "marker": "*", "ms": 9}
"""Styles of training, held-out text and the larger final score, in the color of the run."""


def losses(records: Sequence[RunRecord]) -> bytes:
    """Return a PNG file with the bits per byte of all runs over time; dots are held-out text.

    A star is the final score, on more held-out text than the dots.

    Args:
        records: records of runs that have metrics.
    """
    figure, axes = panel(LIGHT, 8.0, 4.6)
    end_s = max(record.last("elapsed_s") or 0.0 for record in records)
    unit, size = ("s", 1) if end_s < 300 else ("min", 60) if end_s < 10800 else ("h", 3600)
    labels = dict[str, tuple[str, dict[str, Any]]]()  # of the kinds of lines: color and style
    for k, record in enumerate(records):
        ink = LIGHT.inks[k % len(LIGHT.inks)]
        xs = record.history.column("elapsed_s") / size
        larger = f"held-out, {record.larger_score[1]}" if record.larger_score else ""
        for name, label, style in (
            ("train_bits_per_byte", "training", TRAINING),
            ("val_bits_per_byte", "held-out", HELD_OUT),
            ("final_bits_per_byte", larger, LARGER),
        ):
            ys = record.history.column(name)
            known = ~np.isnan(ys)
            if known.any():
                axes.plot(xs[known], ys[known], color=ink, **style)
                labels[label] = (ink if len(records) == 1 else LIGHT.ink, style)
    axes.set_xlabel(f"training time, {unit}")
    axes.set_ylabel("bits per byte")
    subject = records[0].run.name if len(records) == 1 else f"{len(records)} runs"
    title(axes, LIGHT, f"bits per byte of {subject}")
    for k, record in enumerate(records if len(records) > 1 else ()):
        axes.plot([], [], color=LIGHT.inks[k % len(LIGHT.inks)], label=record.run.name, lw=3)
    for name, (ink, style) in labels.items():
        axes.plot([], [], color=ink, label=name, **style)
    axes.legend(loc="upper right", frameon=False, fontsize=8, labelcolor=LIGHT.ink)
    return png(figure)
