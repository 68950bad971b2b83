"""What the seeds of each candidate scored, and the interval they leave for the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxhog.mad.report.names import short
from mlxhog.mad.report.standing import Standing
from mlxhog.report.charts import Theme, panel, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 24
"""Candidates that are drawn, the best."""
_NAME_WIDTH = 40


def draw(standing: Standing, theme: Theme) -> Figure:
    """Draw a line per candidate: a dot per seed, the mean, and its interval."""
    rows = standing.rows[:MOST]
    figure, axes = panel(theme, height=1.2 + 0.28 * len(rows))
    for rank, row in enumerate(rows):
        color = theme.inks[rank % len(theme.inks)]
        seeds = list(row.seeds.values())
        axes.plot(seeds, [rank] * len(seeds), ".", color=color, alpha=0.7, markersize=7)
        axes.errorbar(
            row.score, rank, xerr=row.interval, fmt="|", color=theme.ink, markersize=11, capsize=3
        )
    names = [f"{k + 1}  {short(row.candidate, _NAME_WIDTH)}" for k, row in enumerate(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("score: a dot per seed, | the mean with its 95 % interval")
    title(axes, theme, "seeds")
    return figure
