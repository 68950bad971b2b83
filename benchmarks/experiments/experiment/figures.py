"""Figures of experiments, in the colors of all our figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlxhog.report import charts
from mlxhog.report.charts import LIGHT, panel, style, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # matplotlib is imported where something is drawn

INKS = LIGHT.inks


def new_panel(*, x: str, y: str, heading: str = "") -> tuple[Figure, Any]:
    """Return a figure with one pair of labelled axes, in the colors of all our figures."""
    figure, axes = panel(LIGHT)
    _label(axes, x, y, heading)
    return figure, axes


def new_panels(*labels: tuple[str, str, str]) -> tuple[Figure, list[Any]]:
    """Return a figure with axes side by side, one for each (x label, y label, heading)."""
    figure = charts.blank(LIGHT, 5.2 * len(labels), 4.2)
    panels = list(figure.subplots(1, len(labels), squeeze=False)[0])
    for axes, (x, y, heading) in zip(panels, labels, strict=True):
        style(axes, LIGHT)
        _label(axes, x, y, heading)
    return figure, panels


def _label(axes: Any, x: str, y: str, heading: str) -> None:
    axes.set_xlabel(x, color=LIGHT.ink, fontsize=9)
    axes.set_ylabel(y, color=LIGHT.ink, fontsize=9)
    if heading:
        title(axes, LIGHT, heading)


def legend(axes: Any) -> None:
    """Put the legend beside the axes; what was drawn last comes first."""
    charts.legend(axes, LIGHT)


def curves(axes: Any, lines: Mapping[str, tuple[Any, Any]], mark: str = "-") -> None:
    """Draw a line for each name from its x and y, in the order of the inks."""
    for ink, (name, (x, y)) in zip(INKS, lines.items(), strict=False):
        axes.plot(x, y, mark, color=ink, label=name)
