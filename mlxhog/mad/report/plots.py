"""The plots of a study: costs, and learning curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlxhog.mad.report.board import folded
from mlxhog.mad.report.ranking import Ranking
from mlxhog.mad.run import Point, RunRecord
from mlxhog.mad.scores import UNFINISHED, CandidateScore
from mlxhog.report.charts import MARKERS, OTHER, Theme, legend_below, panel, png
from mlxhog.report.table import cut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 6.4, 3.9
"""Inches of a figure, readable also on a phone."""
LEGEND_WIDTH = 44
"""Characters of a candidate in a legend."""
WIDE = 8.0
"""Ratio of the largest to the smallest cost above which the axis is logarithmic."""
BASELINE = "baseline"


@dataclass(frozen=True)
class Plot:
    """One plot."""

    study: str  # name of the study
    name: str  # of its file, without the ending
    title: str  # heading on the page, and in a file of its own
    caption: str  # its content, in a sentence or two
    figure: Callable[[Theme], Figure]  # draws it in the colors of a theme

    def png(self, theme: Theme, *, titled: bool = True) -> bytes:
        """Return the plot as a PNG file, with a title or for a page that has its own."""
        figure = self.figure(theme)
        if titled:
            figure.suptitle(f"{self.study}: {self.title}", color=theme.ink, fontsize=10)
        return png(figure)


COSTS: Mapping[str, tuple[str, Callable[[CandidateScore], float]]] = {
    "params": ("parameters of the layers", lambda row: float(row.params)),
    "state": ("state: numbers kept per sequence", lambda row: float(row.state)),
    "seconds": ("seconds of training, all runs", lambda row: row.seconds),
}
"""Name of a cost of a candidate -> the label of its axis, and its value."""


def plots(ranking: Ranking) -> Iterator[Plot]:
    """Yield the plots for which a study has numbers."""
    if not ranking.rows:
        return
    for name, (label, _) in COSTS.items():
        yield Plot(
            ranking.study,
            f"score-{name}",
            f"Score against {label}",
            "Numbers are ranks; bars are 95 % intervals over seeds; an edge marks the Pareto "
            "front; hollow candidates lack runs and are not on it.",
            partial(draw_costs, ranking, name),
        )
    for task in ranking.tasks:
        label, curves = _curves(ranking, task)
        if curves:
            yield Plot(
                ranking.study,
                f"curves-{task}",
                f"Learning curves: {task}, {label}",
                "A line per seed, of its best optimiser point. x marks where a run diverged, a "
                "dotted line the best that is possible.",
                partial(draw_curves, ranking, task),
            )


def on_front(ranking: Ranking, cost: str) -> list[int]:
    """Return the indices in `ranking.rows` of the complete candidates on the front, by cost."""
    of = COSTS[cost][1]
    whole = [k for k, row in enumerate(ranking.rows) if row.status not in UNFINISHED]
    points = [(of(ranking.rows[k]), ranking.rows[k].score) for k in whole]
    return [whole[i] for i in front(points)]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (cost, score) that no other one dominates, by rising cost.

    A point dominates another that is worse in one of the two and not better in the other. Of equal
    points all are on the front, or none.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    indices: list[int] = []
    best = float("-inf")
    for i in order:
        cost, score = points[i]
        if score > best or (indices and points[indices[-1]] == (cost, score)):
            indices.append(i)
            best = score
    return indices


class _Legend:
    """Colors and names of candidates by rank: the first ones have their own, the others one."""

    def __init__(self, ranking: Ranking, theme: Theme) -> None:
        self._ranking, self._theme = ranking, theme
        self._named: set[str] = set()

    def color(self, rank: int) -> str:
        return self._theme.inks[rank] if self.is_first(rank) else self._theme.faint

    def is_first(self, rank: int) -> bool:
        return rank < len(self._theme.inks)

    def label(self, rank: int) -> str | None:
        """The name of a candidate; None if the legend has it."""
        layers = cut(folded(self._ranking.rows[rank].layers), LEGEND_WIDTH)
        name = f"{rank + 1}  {layers}" if self.is_first(rank) else OTHER
        if name in self._named:
            return None
        self._named.add(name)
        return name


def draw_costs(ranking: Ranking, cost: str, theme: Theme) -> Figure:
    """Draw every candidate with its interval; incomplete ones are hollow."""
    figure, axes = panel(theme, WIDTH, HEIGHT)
    label, of = COSTS[cost]
    rows, best, legend = ranking.rows, on_front(ranking, cost), _Legend(ranking, theme)
    if len(best) > 1:
        axes.plot(
            [of(rows[k]) for k in best],
            [rows[k].score for k in best],
            drawstyle="steps-post",
            color=theme.ink,
            linewidth=1.0,
            linestyle="--",
            label="Pareto front",
            zorder=1,
        )
    for rank, row in reversed(list(enumerate(rows))):
        first, color, at = legend.is_first(rank), legend.color(rank), (of(row), row.score)
        axes.errorbar(
            *at,
            yerr=row.interval,
            color=color,
            marker=MARKERS[rank] if first else ".",
            markersize=7 if first else 6,
            markerfacecolor=theme.paper if row.status in UNFINISHED else color,
            markeredgecolor=theme.ink if rank in best else color,
            markeredgewidth=1.3,
            linestyle="none",
            elinewidth=1.0,
            capsize=2,
            label=legend.label(rank),
            zorder=3 if rank in best else 2,
        )
        if rank in best or first:
            axes.annotate(
                str(rank + 1), at, (5, 4), textcoords="offset points", color=theme.ink, fontsize=7
            )
    above = [value for value in map(of, rows) if value > 0]
    if above and max(above) / min(above) > WIDE:
        axes.set_xscale("symlog", linthresh=min(above))  # some keep no state at all
    axes.set_xlabel(label)
    axes.set_ylabel("score")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))  # an interval may be wider
    legend_below(axes, theme)
    return figure


def _curves(
    ranking: Ranking, task: str
) -> tuple[str, list[tuple[int, RunRecord, tuple[Point, ...]]]]:
    """The setting of a plot, and rank, run and points of each curve; the best is last, on top.

    The setting is the baseline if it was run, else the first.
    """
    labels = [record.label for record in ranking.records if record.task == task]
    label = BASELINE if BASELINE in labels or not labels else labels[0]
    curves = [
        (rank, record, points)
        for rank, row in reversed(list(enumerate(ranking.rows)))
        for record in row.best
        if (record.task, record.label) == (task, label)
        and (points := ranking.curves.get(record.key, ()))
    ]
    return label, curves


def draw_curves(ranking: Ranking, task: str, theme: Theme) -> Figure:
    """Draw accuracy over steps, with a line for the best optimiser point of every seed."""
    figure, axes = panel(theme, WIDTH, HEIGHT)
    legend = _Legend(ranking, theme)
    for rank, record, points in _curves(ranking, task)[1]:
        first, color = legend.is_first(rank), legend.color(rank)
        axes.plot(
            [point.step for point in points],
            [point.acc_token for point in points],
            color=color,
            linewidth=1.4 if first else 0.7,
            marker=MARKERS[rank] if first else None,
            markersize=3,
            markevery=max(1, len(points) // 8),
            label=legend.label(rank),
        )
        if record.status == "diverged":
            axes.plot(points[-1].step, points[-1].acc_token, "x", color=color, markersize=9)
    for ceiling in sorted({row.ceiling.get(task, 1.0) for row in ranking.rows} - {1.0}):
        axes.axhline(ceiling, color=theme.ink, linewidth=0.8, linestyle=":")
    axes.set_ylim(0.0, 1.02)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    selects = {row.select for row in ranking.rows}
    axes.set_ylabel(f"acc_token of the {'validation' if selects == {'val'} else 'test'} rows")
    legend_below(axes, theme)
    return figure
