"""Which layer in which slot goes with which score, and how much each slot decides."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mlxhog.mad.report.importance import Slot, slots
from mlxhog.mad.report.standing import Standing
from mlxhog.mad.scores import UNFINISHED
from mlxhog.report.charts import Theme, blank, style, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def choices(standing: Standing) -> list[Slot]:
    """Return the slots over the candidates that lack no runs; none where nothing was chosen."""
    scored = [(row.layers, row.score) for row in standing.rows if row.status not in UNFINISHED]
    found = slots(scored)
    return found if any(len(slot.means) > 1 for slot in found) else []


def draw(found: list[Slot], theme: Theme) -> Figure:
    """Draw a bar per slot above a table of mean scores, layers down, slots across."""
    import numpy as np

    names = sorted({name for slot in found for name in slot.means})
    figure = blank(theme, max(6.0, 2.2 + 0.9 * len(found)), 1.9 + 0.36 * len(names))
    bars, heat = figure.subplots(2, 1, height_ratios=[1.0, 0.32 * len(names) + 0.2], sharex=True)
    for axes in (bars, heat):
        style(axes, theme)
        axes.grid(visible=False)
    at = np.arange(len(found))
    few = any(math.isnan(slot.share) for slot in found)
    bars.bar(at, [0.0 if few else slot.share for slot in found], width=0.6, color=theme.inks[0])
    bars.set_ylim(0, 1)
    if few:
        bars.set_yticks([])
        said = "too few candidates to tell how much a slot decides"
        bars.text(
            0.5, 0.5, said, ha="center", va="center", fontsize=8, color=theme.ink,
            transform=bars.transAxes,
        )  # fmt: skip
    else:
        bars.set_ylabel("share of variance")
    title(bars, theme, "what each slot decides, and the mean score of each layer in it")
    table = np.array([[slot.means.get(name, np.nan) for slot in found] for name in names])
    image = heat.imshow(table, aspect="auto", cmap=theme.heat)
    low, high = image.get_clim()
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            share = (value - low) / (high - low) if high > low else 0.0
            bright = share < 0.5 if theme.name == "light" else share > 0.5
            heat.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="#1f2328" if bright else "#ffffff",
            )
    heat.set_yticks(range(len(names)), names)
    heat.set_xticks(at, [str(slot.number) for slot in found])
    heat.set_xlabel("slot")
    return figure
