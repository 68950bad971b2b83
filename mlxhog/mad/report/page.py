"""One HTML page of a study, and its plots: no network, no script, light and dark, on paper too."""

import base64
import itertools
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlxhog.base.durable import explained, replace_file
from mlxhog.base.inside import subfolder
from mlxhog.base.paths import expanded
from mlxhog.display.charts import DARK, LIGHT, MARKERS, OTHER, Theme, legend_below, panel, picture
from mlxhog.display.page import document, facts, text_cards
from mlxhog.display.page import table as html_table
from mlxhog.display.table import cut
from mlxhog.errors import ConfigError
from mlxhog.mad.objectives import value_of
from mlxhog.mad.options import OBJECTIVES
from mlxhog.mad.report.leaderboard import Ranking, read_ranking, table
from mlxhog.mad.report.progress import compact
from mlxhog.mad.scores import LOST, UNFINISHED
from mlxhog.mad.study.store import Store
from mlxhog.mad.tasks import find

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT = ("layers", "status")
"""Columns of words."""
NOTE = (
    "score: mean of acc_macro of the test rows over the tasks (of suite lm 1 - bits per byte / 8), "
    "± 95 % interval over seeds; front: * on the Pareto front of the measured numbers; params: "
    "parameters of the layers; state: what the layers keep per sequence, in float32; time: all runs"
)


def write(store: Store, output_dir: str | None = None) -> dict[str, Any]:
    """Write the plots of a study and its page; return their paths, and what the study lacks.

    Raises:
        ConfigError: the folder, plots/ in the study's by default, cannot be written.
    """
    ranking = read_ranking(store)
    folder = expanded(output_dir) if output_dir else store.directory / "plots"
    try:
        if output_dir:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            subfolder(store.directory, "plots")
    except OSError as error:
        raise ConfigError(f"--output-dir {folder}: {explained(error)}") from error
    drawn, target = list(plots(ranking)), folder / "index.html"
    paths = {plot.name: str(folder / f"{plot.name}.png") for plot in drawn}
    for plot in drawn:
        replace_file(Path(paths[plot.name]), plot.file(ranking.study))
    replace_file(target, page(ranking, drawn, version=version("mlxhog")).encode())
    return {"page": str(target), "plots": paths, "partial": ranking.lacking}


def page(ranking: Ranking, plots: "Iterable[Plot]", *, version: str) -> str:
    """Return the page; each plot is drawn twice, for light and for dark screens."""
    title = f"{ranking.study}: MAD, suite {ranking.suite}"
    figures, lost = "\n".join(map(_figure, plots)), ranking.troubles
    cards = [[*one.values()] for one in lost]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sum">{escape(ranking.heading).replace("  ", " &middot; ")}</p>',
        f'<p class="partial">{escape(ranking.lacking)}</p>' if ranking.lacking else "",
        _leaderboard(ranking) if ranking.rows else "",
        f'<div class="figures">\n{figures}\n</div>' if figures else "",
        f"<h2>Runs that failed or diverged (score 0), and remarks</h2>\n"
        f"{text_cards([*lost[0]], cards)}"
        if lost
        else "",
        f"<h2>Recipe</h2>\n{facts(ranking.facts.items())}",
        f"<footer>mlxhog {escape(version)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Everything is "
        f"in this file; <code>mlxhog mad leaderboard {escape(ranking.study)} --json</code> has the "
        "numbers.</footer>",
    ]
    return document(title, "\n".join(filter(None, parts)))


def _leaderboard(ranking: Ranking) -> str:
    """The table; cells of tasks have a color by accuracy."""
    rows, tasks = table(ranking), {find(task).short for task in ranking.tasks}
    tags = {"layers": "code", "score": "b"}

    def cell(head: str, text: str) -> str:
        look = ' class="t"' if head in LEFT else ""
        if head in tasks and text != "-":
            look = f' class="h" style="--v:{text}"'
        tag = tags.get(head, "span")
        return f'<td{look} data-head="{escape(head)}"><{tag}>{escape(text)}</{tag}></td>'

    body = ("".join(map(cell, row.keys(), row.values())) for row in rows)
    texts = filter(None, (ranking.final_note, NOTE, ranking.best_achievable))
    notes = (f'<p class="note">{escape(one)}</p>' for one in texts)
    return "\n".join(
        ["<h2>Leaderboard</h2>", html_table([*rows[0]], body, LEFT, cards=True), *notes]
    )


def _figure(plot: "Plot") -> str:
    light, dark = (
        f"data:image/png;base64,{base64.b64encode(picture(plot.draw(theme))).decode()}"
        for theme in (LIGHT, DARK)
    )
    return f"""<figure id="{escape(plot.name)}">
<h2>{escape(plot.title)}</h2>
<picture>
<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">
<img src="{light}" alt="{escape(plot.title)}">
</picture>
<figcaption>{escape(plot.caption)}</figcaption>
</figure>"""


# -- plots -----------------------------------------------------------------------------------------

SIZE = (6.4, 3.9)
"""Inches of a figure, readable also on a phone."""
LEGEND_WIDTH = 44
"""Characters of a candidate in a legend."""
WIDE = 8.0
"""Ratio of the largest to the smallest cost above which the axis is logarithmic."""
BASELINE = "baseline"
DASHES = (("-", "solid"), ("--", "dashed"), (":", "dotted"), ("-.", "dash-dotted"))
"""Looks of the lines of seeds, in turns."""

COSTS = {
    "params": "parameters of the layers",
    "state": "state: numbers kept per sequence",
    "seconds": "seconds of training, all runs",
}
"""Field of a `CandidateScore` -> the label of its axis."""
MEASURED_COSTS = {
    "train_tokens_per_s": "tokens/s of training",
    "decode_tokens_per_s": "tokens/s of decoding",
    "peak_memory_bytes": "bytes of the largest resident memory",
}
"""Number of suite lm -> the label of its axis."""


class Plot(NamedTuple):
    """One plot."""

    name: str  # of its file, without the ending
    title: str  # heading on the page, and in a file of its own
    caption: str  # its content, in a sentence or two
    draw: "Callable[[Theme], Figure]"  # in the colors of a theme

    def file(self, study: str) -> bytes:
        """Return a PNG file of its own, with a title."""
        figure = self.draw(LIGHT)
        figure.suptitle(f"{study}: {self.title}", color=LIGHT.ink, fontsize=10)
        return picture(figure)


def plots(ranking: Ranking) -> Iterator[Plot]:
    """Yield the plots for which a study has numbers."""
    measured = {n: x for n, x in MEASURED_COSTS.items() if n in ranking.measures}
    for name, label in (COSTS | measured).items() if ranking.rows else ():
        yield Plot(
            f"score-{name}",
            f"Score against {label}",
            "Labels are ranks; bars are 95 % intervals over seeds; an edge marks the Pareto "
            "front; hollow candidates lack runs and are not on it.",
            partial(draw_costs, ranking, name),
        )
    named = zip(ranking.seeds, itertools.cycle(DASHES), strict=False)
    seeds = ", ".join(f"seed {seed} {look}" for seed, (_, look) in named)
    for task in ranking.tasks:
        # The baseline if it was run, else the first task config.
        labels = [record.label for record in ranking.records if record.task == task]
        label = BASELINE if BASELINE in labels else labels[0]
        own = [run.key for run in ranking.records if (run.task, run.label) == (task, label)]
        if any(map(ranking.curve, own)):
            yield Plot(
                f"curves-{task}",
                f"Learning curves: {task}, {label}",
                f"A line per seed, of its best learning rate: {seeds}. x marks where a run "
                "diverged, a gray line the best achievable accuracy.",
                partial(draw_curves, ranking, task, label),
            )


def _with_commas(value: float, _: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def front(ranking: Ranking, cost: str) -> list[int]:
    """Return the indices in `ranking.rows` of the complete candidates on the Pareto front."""
    sign = -OBJECTIVES.get(cost, -1)
    complete = [
        (sign * value, -row.score, k)
        for k, row in enumerate(ranking.rows)
        if row.status not in (*UNFINISHED, *LOST) and (value := value_of(row, cost)) is not None
    ]
    indices, best, at = list[int](), -1.0, (0.0, 0.0)
    for x, y, k in sorted(complete):
        if -y > best or (x, y) == at:
            best, at = -y, (x, y)
            indices.append(k)
    return indices


def _look(ranking: Ranking, rank: int, theme: Theme) -> tuple[bool, str, str]:
    """Whether a candidate is among the first, which have their own colors; color, and name."""
    if rank >= len(theme.inks):
        return False, theme.faint, OTHER
    layers = cut(compact(ranking.rows[rank].layers), LEGEND_WIDTH)
    return True, theme.inks[rank], f"{rank + 1}  {layers}"


def draw_costs(ranking: Ranking, cost: str, theme: Theme) -> "Figure":
    """Draw every candidate that has the cost, with its interval; incomplete ones are hollow."""
    figure, axes = panel(theme, *SIZE)
    rows, best = ranking.rows, front(ranking, cost)
    costs = {k: value for k, row in enumerate(rows) if (value := value_of(row, cost)) is not None}
    if len(best) > 1:
        axes.plot(
            [costs[k] for k in best], [rows[k].score for k in best], drawstyle="steps-post",
            color=theme.ink, linewidth=1.0, linestyle="--", label="Pareto front", zorder=1,
        )  # fmt: skip
    for rank in reversed(costs):
        row, (is_first, color, name) = rows[rank], _look(ranking, rank, theme)
        at = (costs[rank], row.score)
        axes.errorbar(
            *at, yerr=row.interval, color=color, linestyle="none", elinewidth=1.0, capsize=2,
            marker=MARKERS[rank] if is_first else ".", markersize=7 if is_first else 6,
            markerfacecolor=theme.paper if row.status in UNFINISHED else color,
            markeredgecolor=theme.ink if rank in best else color, markeredgewidth=1.3,
            label=name, zorder=3 if rank in best else 2,
        )  # fmt: skip
        if rank in best or is_first:
            axes.annotate(
                str(rank + 1), at, (5, 4), textcoords="offset points", color=theme.ink, fontsize=7
            )
    above = [value for value in costs.values() if value > 0]
    if above and max(above) / min(above) > WIDE:
        axes.set_xscale("symlog", linthresh=min(above))  # some keep no state at all
    low, high = axes.get_ylim()
    axes.xaxis.set_major_formatter(_with_commas)
    axes.set(
        xlabel=(COSTS | MEASURED_COSTS)[cost],
        ylabel="score" if ranking.measures else "score: mean accuracy over the tasks",
        ylim=(max(low, -0.02), min(high, 1.02)),
    )
    legend_below(axes, theme)
    return figure


def draw_curves(ranking: Ranking, task: str, label: str, theme: Theme) -> "Figure":
    """Draw accuracy over steps, a line for each seed; the best candidate is on top."""
    figure, axes = panel(theme, *SIZE)
    for rank, row in reversed(list(enumerate(ranking.rows))):
        is_first, color, name = _look(ranking, rank, theme)
        for run in row.best:
            if (run.task, run.label) != (task, label) or not (points := ranking.curve(run.key)):
                continue
            dashes = DASHES[ranking.seeds.index(run.seed) % len(DASHES)]
            axes.plot(
                [point.step for point in points], [point.acc_token for point in points],
                color=color, linestyle=dashes[0], linewidth=1.4 if is_first else 0.7, label=name,
                marker=MARKERS[rank] if is_first else None, markersize=3,
                markevery=max(1, len(points) // 8),
            )  # fmt: skip
            if run.status == "diverged":
                axes.plot(points[-1].step, points[-1].acc_token, "x", color=color, markersize=9)
    for best in sorted({row.best_achievable.get(task, 1.0) for row in ranking.rows} - {1.0}):
        axes.axhline(best, color=theme.faint, linewidth=1.6)
    of = "validation" if {row.select for row in ranking.rows} == {"val"} else "test"
    axes.xaxis.set_major_formatter(_with_commas)
    axes.set(xlabel="step", ylabel=f"accuracy per token, {of} rows", ylim=(0.0, 1.02))
    axes.set_xlim(left=0)
    legend_below(axes, theme)
    return figure
