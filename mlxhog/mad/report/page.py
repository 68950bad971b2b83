"""One HTML page of a study: no network, no script, light and dark, on paper too."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from mlxhog.mad.report.leaderboard import NOTE, TROUBLE, ceiling_note, columns, troubles
from mlxhog.mad.report.plots import Plot
from mlxhog.mad.report.ranking import Ranking
from mlxhog.report.charts import DARK, LIGHT
from mlxhog.report.page import document, facts, text_cards
from mlxhog.report.page import table as html_table

LEFT = ("layers", "status")
"""Columns of words."""


def page(ranking: Ranking, plots: Iterable[Plot], *, version: str) -> str:
    """Return the page; each plot is drawn twice, for light and for dark screens."""
    title = f"{ranking.study}: MAD, suite {ranking.suite}"
    figures, lost = "\n".join(map(_figure, plots)), troubles(ranking)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sum">{escape(ranking.heading)}</p>',
        f'<p class="partial">{escape(ranking.lacking)}</p>' if ranking.lacking else "",
        _leaderboard(ranking) if ranking.rows else "",
        f'<div class="figures">\n{figures}\n</div>' if figures else "",
        f"<h2>Runs that count as 0</h2>\n{text_cards(TROUBLE, lost)}" if lost else "",
        f"<h2>Protocol</h2>\n{facts(ranking.facts.items())}",
        f"<footer>mlxhog {escape(version)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Everything is "
        f"in this file; <code>mlxhog mad board {escape(ranking.study)} --json</code> has the "
        "numbers.</footer>",
    ]
    return document(title, "\n".join(filter(None, parts)))


def _leaderboard(ranking: Ranking) -> str:
    """The table of the board; cells of tasks have a color by accuracy."""
    shown, rows = columns(ranking), list[str]()
    for rank, row in enumerate(ranking.rows, start=1):
        cells = [
            f'<td data-head="#">{rank}</td>',
            f'<td class="t" data-head="layers"><code>{escape(row.candidate)}</code></td>',
        ]
        for column in shown:
            text, heat = escape(column.text(row)), column.heat(row)
            look = ' class="t"' if column.head in LEFT else ""
            look = look if heat is None else f' class="h" style="--v:{heat:.3f}"'
            text = f"<b>{text}</b>" if column.head == "score" else text
            cells.append(f'<td{look} data-head="{escape(column.head)}">{text}</td>')
        rows.append("".join(cells))
    header = ["#", "layers", *(column.head for column in shown)]
    notes = (f'<p class="note">{escape(one)}</p>' for one in (NOTE, ceiling_note(ranking)) if one)
    return "\n".join(["<h2>Leaderboard</h2>", html_table(header, rows, LEFT, cards=True), *notes])


def _figure(plot: Plot) -> str:
    light, dark = (
        f"data:image/png;base64,{base64.b64encode(plot.png(theme, titled=False)).decode()}"
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
