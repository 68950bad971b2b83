"""Score against a cost: parameters, state or time, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxhog.mad.report.names import short
from mlxhog.mad.report.pareto import front
from mlxhog.mad.report.plot_curves import LEGEND_WIDTH
from mlxhog.mad.report.standing import Standing
from mlxhog.mad.scores import UNFINISHED, Row
from mlxhog.report.charts import MARKERS, OTHER, Theme, legend, panel, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE = 8.0
"""Ratio of the largest to the smallest cost from which on the axis is logarithmic."""


@dataclass(frozen=True)
class Cost:
    """What a candidate costs.

    Attributes:
        name: of the file and of the field of a row.
        label: of the axis, with the unit.
        of: the cost of a row.
    """

    name: str
    label: str
    of: Callable[[Row], float]


COSTS = (
    Cost("params", "parameters of the layers", lambda row: float(row.params)),
    Cost("state", "state: numbers kept per sequence", lambda row: float(row.state)),
    Cost("seconds", "seconds of training, all runs", lambda row: row.seconds),
)


def on_front(standing: Standing, cost: Cost) -> list[int]:
    """Return the places in `standing.rows` of the candidates on the front, the cheapest first.

    Candidates that lack runs may still move, and are left out.
    """
    whole = [k for k, row in enumerate(standing.rows) if row.status not in UNFINISHED]
    points = [(cost.of(standing.rows[k]), standing.rows[k].score) for k in whole]
    return [whole[i] for i in front(points)]


def draw(standing: Standing, cost: Cost, theme: Theme) -> Figure:
    """Draw every candidate with its interval; those that lack runs are hollow."""
    figure, axes = panel(theme)
    best = on_front(standing, cost)
    rows = standing.rows
    axes.plot(
        [cost.of(rows[k]) for k in best],
        [rows[k].score for k in best],
        drawstyle="steps-post",
        color=theme.ink,
        linewidth=1.0,
        linestyle="--",
        label="Pareto front",
        zorder=1,
    )
    named: set[str] = set()
    for rank, row in reversed(list(enumerate(rows))):
        first = rank < len(theme.inks)
        color = theme.inks[rank] if first else theme.faint
        name = f"{rank + 1}  {short(row.candidate, LEGEND_WIDTH)}" if first else OTHER
        hollow = row.status in UNFINISHED
        axes.errorbar(
            cost.of(row),
            row.score,
            yerr=row.interval,
            color=color,
            marker=MARKERS[rank] if first else ".",
            markersize=7 if first else 6,
            markerfacecolor=theme.paper if hollow else color,
            markeredgecolor=theme.ink if rank in best else color,
            markeredgewidth=1.3,
            linestyle="none",
            elinewidth=1.0,
            capsize=2,
            label=None if name in named else name,
            zorder=3 if rank in best else 2,
        )
        named.add(name)
        if rank in best or first:
            axes.annotate(
                str(rank + 1),
                (cost.of(row), row.score),
                xytext=(5, 4),
                textcoords="offset points",
                color=theme.ink,
                fontsize=7,
                fontweight="bold" if rank in best else "normal",
            )
    costs = [cost.of(row) for row in rows]
    above = [value for value in costs if value > 0]
    if above and max(above) / min(above) > _WIDE:
        axes.set_xscale("symlog", linthresh=min(above))  # some keep no state at all
    axes.set_xlabel(cost.label)
    axes.set_ylabel("score")
    title(axes, theme, f"score against {cost.label.split(':')[0].split(',')[0]}")
    legend(axes, theme)
    return figure
