"""Learning curves of one task: accuracy over steps, every candidate, every seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxhog.mad.report.names import short
from mlxhog.mad.report.standing import Standing
from mlxhog.report.charts import MARKERS, OTHER, Theme, legend, panel, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "baseline"
LEGEND_WIDTH = 44
"""Characters of a candidate in a legend."""


def label_of(standing: Standing, task: str) -> str:
    """Return the setting that is drawn: the baseline, or the first one without one."""
    labels = [record.label for record in standing.records if record.task == task]
    return BASELINE if BASELINE in labels or not labels else labels[0]


def draw(standing: Standing, task: str, theme: Theme) -> Figure:
    """Draw accuracy over steps, the best optimiser point of every seed a line."""
    figure, axes = panel(theme)
    label = label_of(standing, task)
    named: set[str] = set()
    # the best last, so that they lie on top
    for rank, row in reversed(list(enumerate(standing.rows))):
        first = rank < len(theme.inks)
        color = theme.inks[rank] if first else theme.faint
        name = f"{rank + 1}  {short(row.candidate, LEGEND_WIDTH)}" if first else OTHER
        for record in standing.chosen.get(row.candidate, ()):
            if (record.task, record.label) != (task, label):
                continue
            points = standing.curves.get(record.key, ())
            if not points:
                continue
            axes.plot(
                [point.step for point in points],
                [point.acc_token for point in points],
                color=color,
                linewidth=1.4 if first else 0.7,
                marker=MARKERS[rank] if first else None,
                markersize=3,
                markevery=max(1, len(points) // 8),
                label=None if name in named else name,
            )
            named.add(name)
            if record.status == "diverged":
                axes.plot(points[-1].step, points[-1].acc_token, "x", color=color, markersize=9)
    for ceiling in sorted({row.ceiling.get(task, 1.0) for row in standing.rows} - {1.0}):
        axes.axhline(ceiling, color=theme.ink, linewidth=0.8, linestyle=":")
    axes.set_ylim(0.0, 1.02)
    axes.set_xlim(left=0)
    title(axes, theme, f"{task}, {label}")
    axes.set_xlabel("step")
    axes.set_ylabel("acc_token of the test rows")
    if named:
        legend(axes, theme)
    return figure
