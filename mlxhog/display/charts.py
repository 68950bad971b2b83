"""Draw figures with matplotlib, without its global state: themes, axes, legends, losses."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.progress import NGRAM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mlxhog.display.record import RunRecord

DPI = 150
OTHER = "candidates with lower scores"


@dataclass(frozen=True)
class Theme:
    """Colors of a figure."""

    paper: str  # background
    ink: str  # text and axes
    faint: str  # grid, and lines without a color of their own
    inks: tuple[str, ...]  # of the first candidates; distinct with any kind of color vision


# Okabe and Ito 2008, without yellow, which is hard to see on white; brighter ones on black.
LIGHT = Theme(
    "#ffffff",
    "#1f2328",
    "#c8ccd1",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6f4e9c", "#7a7a00"),
)
DARK = Theme(
    "#16181c",
    "#e4e6e9",
    "#4a4f57",
    ("#4db2ff", "#ff8c42", "#35d0a0", "#ff9fd0", "#ffc14d", "#9ad8ff", "#b79cf0", "#c9c94a"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def panel(theme: Theme, width: float = 7.5, height: float = 4.4) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes, without a frame; sizes in inches."""
    # It logs where its cache is, and that it builds one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure  # takes 0.5 s, so only plots import it

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=theme.paper)
    axes = figure.subplots()
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.ink, which="both", labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(side in ("left", "bottom"))
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
        label.set_fontsize(9)
    axes.grid(visible=True, color=theme.faint, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def legend_below(axes: Axes, theme: Theme) -> None:
    """Add a legend below the axes, each label once, and enlarge the figure by its height."""
    of = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    handles, labels = [*of.values()], [*of]
    columns = 1 if any(len(label) > _SHORT for label in labels) else 2
    figure = axes.get_figure(root=True)
    if figure is None or not labels:
        return
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _LINE * math.ceil(len(labels) / columns))
    legend = figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=theme.ink,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with two $ is no formula


_SHORT = 34  # longest label, in characters, of which two fit in one row
_LINE = 0.19  # height of a line of the legend, in inches

FORMATS = ("png", "svg", "pdf")
_NO_DATE: dict[str, dict[str, Any]] = {
    "png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}
}  # fmt: skip


def picture(figure: Figure, kind: str = "png") -> bytes:
    """Return a figure as a file of one of `FORMATS`, the same bytes for the same values."""
    from matplotlib import rc_context

    out = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "mlxhog"}):
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # names of other scripts
        figure.savefig(out, format=kind, metadata=_NO_DATE[kind])
    return out.getvalue()


TRAINING: dict[str, Any] = {"lw": 1.2}
VALIDATION: dict[str, Any] = {"lw": 1.0, "ls": "--", "marker": "o", "ms": 3.5}
LARGER: dict[str, Any] = {"ls": "", "marker": "*", "ms": 9}
"""Styles of training, validation and the larger final score, in the color of the run."""

BASELINES = {"gzip": "gzip", "xz": "xz", NGRAM: "n-gram"}


def without_network(record: RunRecord) -> dict[str, float]:
    """Return the baselines' bits per byte on the validation set: compressors and n-grams."""
    baselines = record.progress.baselines
    return {shown: baselines[name] for name, shown in BASELINES.items() if name in baselines}


def _marker(values: NDArray[np.float64]) -> str:
    """Return the marker of a line: a line of one point alone would leave no ink."""
    return "." if np.isfinite(values).sum() == 1 else ""


def losses(records: Sequence[RunRecord], kind: str = "png") -> bytes:
    """Return a figure with the bits per byte of all runs over time, as one of `FORMATS`.

    Dots are validation scores, a star is the final score on more validation text; a single run has
    the baselines, too.
    """
    figure, axes = panel(LIGHT, 8.0, 4.6)
    end_s = max(record.last("elapsed_s") or 0.0 for record in records)
    unit, size = ("s", 1) if end_s < 300 else ("min", 60) if end_s < 10800 else ("h", 3600)
    alone = len(records) == 1
    if has_rates := any(record.last("lr") is not None for record in records):
        rates = axes.twinx()
        rates.set_ylabel("learning rate (dotted)", color=LIGHT.ink, fontsize=9)
        rates.tick_params(colors=LIGHT.ink, labelsize=8)
        rates.spines[:].set_visible(False)
    for k, record in reversed(list(enumerate(records))):  # the legend begins with the last line
        xs = record.history.column("elapsed_s") / size
        ink = LIGHT.inks[k % len(LIGHT.inks)]
        hidden = "\u200b" * record.run.name.startswith("_")  # legends leave out a label with _
        if has_rates:
            lr = record.history.column("lr")
            rates.plot(xs, lr, color=ink, lw=0.8, ls=":", marker=_marker(lr))
        share = record.larger_score[1] if record.larger_score else "more text"  # of before a resume
        for name, label, style in (
            ("final_bits_per_byte", f"validation, {share}", LARGER),
            ("val_bits_per_byte", "validation", VALIDATION),
            ("train_bits_per_byte", "training", TRAINING),
        ):
            ys = record.history.column(name)
            known = ~np.isnan(ys)
            if known.any():
                label = label if alone else f"{hidden}{record.run.name}: {label}"
                style = {"marker": _marker(ys), **style}
                axes.plot(xs[known], ys[known], color=ink, label=label, **style)
    for k, (name, bits) in enumerate(without_network(records[0]).items() if alone else ()):
        axes.axhline(bits, color=LIGHT.ink, lw=0.6, ls=":", alpha=0.5)
        axes.annotate(
            name, (1 - 0.25 * k, bits), xycoords=("axes fraction", "data"), ha="right",
            va="bottom", color=LIGHT.ink, fontsize=7,
        )  # fmt: skip
    axes.set(xlabel=f"training time, {unit}", ylabel="bits per byte")
    subject = records[0].run.name if alone else f"{len(records)} runs"
    title = f"bits per byte of {subject}"
    axes.set_title(title, loc="left", color=LIGHT.ink, fontsize=10, parse_math=False)
    legend_below(axes, LIGHT)
    return picture(figure, kind)
