"""A figure for every block of an analysis: how much of a block updates share, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlxhog.report.charts import LIGHT, blank, png, style, title
from mlxhog.theory.analysis.blocks import GRAINS
from mlxhog.theory.analysis.conflicts import BlockConflicts
from mlxhog.theory.analysis.result import Analysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTITIES = (("p_conf", "p_conf"), ("delta", "Delta"), ("rho", "rho"))


def plots(found: Analysis) -> Iterator[tuple[str, bytes]]:
    """Yield (name, PNG file) of every block.

    Raises:
        EnvironmentLacks: see `charts.require`, which is to be called before.
    """
    for one in found.measured.blocks:
        yield f"block-{one.block.name.replace(' ', '-')}", png(_draw(found, one))


def _draw(found: Analysis, one: BlockConflicts) -> Figure:
    """Left: shares with their intervals, per grain. Right: what a gradient touches."""
    figure = blank(LIGHT, 9.0, 3.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes in (left, right):
        style(axes, LIGHT)
    places = range(len(GRAINS))
    by_grain = [one.by[one.counted, grain] for grain in GRAINS]
    for number, (name, label) in enumerate(QUANTITIES):
        estimates = [getattr(here, name) for here in by_grain]
        values = [estimate.value for estimate in estimates]
        below = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
        above = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
        left.errorbar(
            [place + 0.2 * (number - 1) for place in places],
            values,
            yerr=[below, above],
            fmt="os^"[number],
            color=LIGHT.inks[number],
            capsize=3,
            label=label,
        )
    left.set_xticks(list(places), GRAINS)
    left.set_ylim(-0.03, 1.05)
    left.set_ylabel("share of updates, with 95 % intervals")
    left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    title(left, LIGHT, f"{one.block.name}: {one.block.parameters:,} parameters")
    touched = [here.mean_groups / here.groups for here in by_grain]
    right.bar(list(places), touched, color=LIGHT.inks[2], width=0.6)
    right.set_xticks(list(places), GRAINS)
    right.set_ylim(0, 1.05)
    right.set_ylabel("share of the block that an update touches")
    title(right, LIGHT, f"{found.measured.samples} gradients")
    return figure
