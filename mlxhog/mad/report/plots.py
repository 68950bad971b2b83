"""Every plot of a study, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlxhog.mad.report import plot_costs, plot_curves, plot_seeds, plot_slots
from mlxhog.mad.report.standing import Standing
from mlxhog.report.charts import Theme, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: of its file, without the ending.
        title: heading on the page.
        caption: what is to be seen, in a sentence or two.
        figure: draws it in the colors of a theme.
    """

    name: str
    title: str
    caption: str
    figure: Callable[[Theme], Figure]

    def png(self, theme: Theme) -> bytes:
        """Return the plot as a PNG file.

        Raises:
            EnvironmentLacks: see `charts.require`, which is to be called before.
        """
        return png(self.figure(theme))


def plots(standing: Standing) -> Iterator[Plot]:
    """Yield the plots that a study has numbers for; none of an empty one."""
    if not standing.rows:
        return
    for cost in plot_costs.COSTS:
        yield Plot(
            f"score-{cost.name}",
            f"Score against {cost.label}",
            "Numbers are ranks; bars are 95 % intervals over seeds; an edge marks the Pareto "
            "front; hollow candidates lack runs and are not on it.",
            partial(plot_costs.draw, standing, cost),
        )
    if any(len(row.seeds) > 1 for row in standing.rows):
        yield Plot(
            "seeds",
            "Seeds",
            "Candidates whose intervals overlap widely are not told apart by these seeds.",
            partial(plot_seeds.draw, standing),
        )
    if found := plot_slots.choices(standing):
        yield Plot(
            "slots",
            "Importance of the slots",
            "Bars: share of the variance of scores between the layers tried in a slot. Cells: mean "
            "score of the candidates with that layer there.",
            partial(plot_slots.draw, found),
        )
    for task in standing.tasks:
        yield Plot(
            f"curves-{task}",
            f"Learning curves: {task}",
            "A line per seed, of its best optimiser point. x marks where a run diverged, a dotted "
            "line the best that is possible.",
            partial(plot_curves.draw, standing, task),
        )
