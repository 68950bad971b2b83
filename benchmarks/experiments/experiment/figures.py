"""Figures of experiments: one color for a scheme in all of them, direct labels, every repeat shown.

A figure shows each repeat as a point, and the estimate of an arm with its 95 % interval as a bar
(`intervals`), or one curve for an arm with its name at its end (`curves`).
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from harness.estimates import Mean

from mlxhog.report import charts
from mlxhog.report.charts import LIGHT, panel, style, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # matplotlib is imported where something is drawn

INKS = LIGHT.inks
SCHEMES = {
    "sync by speed": 5, "runs averaged": 4, "averaged runs": 4, "avg_runs": 4, "local": 4,
    "diloco": 6, "round-robin": 3, "round_robin": 3, "in turn": 3, "row locks": 7, "aig": 7,
    "sync": 2, "averaged": 2, "lock-free": 1, "hogwild": 1, "racy": 1, "hot-cold": 1, "serial": 0,
    "one worker": 0,
}  # fmt: skip
"""The ink of a scheme by a word in the name of an arm; the first word that is in it counts."""
LINE_POINTS = 8.0
STYLES = ("-", "--", ":", "-.")
"""Of the arms of one figure that have the same scheme."""


def inks(names):
    """The color of every arm: that of its scheme; for an arm without one, a color of no other."""
    names = list(names)
    places = {name: _scheme(name) for name in names}
    free = [k for k in range(len(INKS)) if k not in places.values()] or list(range(len(INKS)))
    without = [name for name in names if places[name] is None]
    places |= {name: free[k % len(free)] for k, name in enumerate(without)}
    return {name: INKS[place] for name, place in places.items() if place is not None}


def _scheme(name):
    return next((ink for word, ink in SCHEMES.items() if word in name.lower()), None)


def new_panel(*, x, y, heading=""):
    """Return a figure with one pair of labelled axes, in the colors of all our figures."""
    figure, axes = panel(LIGHT)
    _label(axes, x, y, heading)
    return figure, axes


def new_panels(*labels):
    """Return a figure with axes side by side, one for each (x label, y label, heading)."""
    figure = charts.blank(LIGHT, 5.2 * len(labels), 4.2)
    panels = list(figure.subplots(1, len(labels), squeeze=False)[0])
    for axes, (x, y, heading) in zip(panels, labels, strict=True):
        style(axes, LIGHT)
        _label(axes, x, y, heading)
    return figure, panels


def _label(axes, x, y, heading):
    axes.set_xlabel(x, color=LIGHT.ink, fontsize=9)
    axes.set_ylabel(y, color=LIGHT.ink, fontsize=9)
    if heading:
        title(axes, LIGHT, heading)


def curves(axes, lines, mark=""):
    """Draw a line for each name from its x and y, and write the name at its end.

    Args:
        axes: of a figure.
        lines: x and y by the name of an arm.
        mark: of every point; "o-" as in matplotlib, whose line arms of one scheme share.
    """
    colors, seen = inks(lines), dict.fromkeys(INKS, 0)
    for name, (x, y) in lines.items():
        ink = colors[name]
        style = STYLES[seen[ink] % len(STYLES)]
        seen[ink] += 1
        axes.plot(x, y, mark or style, color=ink, label=name)
    label_lines(axes)


def label_lines(*panels):
    """Write the name of each line at its end, one below the other where the ends are close."""
    for axes in panels:
        axes.autoscale_view()
        points = 72 / axes.figure.dpi
        ends = []
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            line = handle[0] if isinstance(handle, tuple) else handle  # with error bars
            known = [end for end in zip(*line.get_data(), strict=True) if np.isfinite(end).all()]
            if known:
                height = float(axes.transData.transform(known[-1])[1]) * points
                ends.append((height, known[-1], name, line.get_color()))
        lowest = -math.inf
        for height, end, name, color in sorted(ends, key=lambda one: one[0]):
            lowest = max(height, lowest + LINE_POINTS)
            axes.annotate(
                name, end, (4, lowest - height), textcoords="offset points", color=color,
                fontsize=7, va="center",
            )  # fmt: skip


def intervals(axes, arms, estimates=None):
    """Draw the repeats of each arm as points in a row of its own, and its estimate with a bar.

    Args:
        axes: of a figure; its y axis becomes the names.
        arms: repeats by the name of an arm.
        estimates: of an arm; the mean of its repeats where it is missing.
    """
    colors = inks(arms)
    for place, (name, values) in enumerate(arms.items()):
        estimate = (estimates or {}).get(name) or Mean.of(values)
        axes.plot(values, [place - 0.15] * len(values), "o", color=colors[name], markersize=3)
        reach = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        axes.errorbar([estimate.value], [place + 0.1], xerr=reach, fmt="D", color=colors[name],
                      markersize=4, capsize=3)  # fmt: skip
    axes.set_yticks(range(len(arms)), list(arms), fontsize=7)
    axes.invert_yaxis()
