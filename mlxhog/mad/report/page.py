"""One HTML page of a study: no network, no script, light and dark, on paper too."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from mlxhog.base.quantities import format_duration
from mlxhog.mad.report.leaderboard import NOTE, Column, ceiling_note, lost, table
from mlxhog.mad.report.plots import Plot
from mlxhog.mad.report.ranking import Ranking
from mlxhog.mad.scores import CandidateScore
from mlxhog.report.charts import DARK, LIGHT
from mlxhog.report.page import document, facts
from mlxhog.report.page import table as html_table


def page(ranking: Ranking, plots: Iterable[Plot], *, version: str) -> str:
    """Return the page; each plot is drawn twice, for light and for dark screens."""
    title = f"{ranking.study}: MAD, suite {ranking.suite}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sum">{escape(_summary(ranking))}</p>',
        _lacking(ranking),
        _leaderboard(ranking),
        _figures(plots),
        _troubles(ranking),
        _missing(ranking),
        _facts(ranking),
        f"<footer>mlxhog {escape(version)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Everything is "
        f"in this file; <code>mlxhog mad board {escape(ranking.study)} --json</code> has the "
        "numbers.</footer>",
    ]
    body = "\n".join(filter(None, parts))
    return document(title, body)


def _summary(ranking: Ranking) -> str:
    of = "" if ranking.planned is None else f" of {ranking.planned}"
    ends = ", ".join(f"{n} {name}" for name, n in ranking.statuses.items() if name != "done")
    return (
        f"{len(ranking.rows)} candidates, {len(ranking.records)}{of} runs"
        f"{f' ({ends})' if ends else ''}, {format_duration(ranking.seconds)} of training"
    )


def _lacking(ranking: Ranking) -> str:
    return f'<p class="partial">{escape(ranking.lacking)}</p>' if ranking.lacking else ""


def _leaderboard(ranking: Ranking) -> str:
    if not ranking.rows:
        return ""
    columns = table(ranking)
    header = ["#", "layers", *(column.head for column in columns)]
    rows = [_row(columns, rank, row) for rank, row in enumerate(ranking.rows, start=1)]
    notes = [NOTE, ceiling_note(ranking)]
    return (
        "<h2>Leaderboard</h2>\n"
        + html_table(header, rows, LEFT, cards=True)
        + "".join(f'\n<p class="note">{escape(note)}</p>' for note in notes if note)
    )


def _row(columns: Sequence[Column], rank: int, row: CandidateScore) -> str:
    """Return a row's cells; those of tasks have a color by accuracy."""
    cells = [f'<td data-head="#">{rank}</td>']
    cells.append(f'<td class="t" data-head="layers"><code>{escape(row.candidate)}</code></td>')
    for column in columns:
        text, heat = escape(column.text(row)), column.heat(row)
        look = ' class="t"' if column.words else ""
        look = look if heat is None else f' class="h" style="--v:{heat:.3f}"'
        text = f"<b>{text}</b>" if column.head == "score" else text
        cells.append(f'<td{look} data-head="{escape(column.head)}">{text}</td>')
    return "".join(cells)


LEFT = ("layers", "status", "", "run", "reason")
"""Columns of words."""


def _facts(ranking: Ranking) -> str:
    return f"<h2>Protocol</h2>\n{facts(ranking.facts)}" if ranking.facts else ""


def _figures(plots: Iterable[Plot]) -> str:
    figures = "\n".join(map(_figure, plots))
    return f'<div class="figures">\n{figures}\n</div>' if figures else ""


def _figure(plot: Plot) -> str:
    light, dark = (_inline(plot.png(theme, titled=False)) for theme in (LIGHT, DARK))
    return f"""<figure id="{escape(plot.name)}">
<h2>{escape(plot.title)}</h2>
<picture>
<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">
<img src="{light}" alt="{escape(plot.title)}">
</picture>
<figcaption>{escape(plot.caption)}</figcaption>
</figure>"""


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _troubles(ranking: Ranking) -> str:
    records = lost(ranking)
    if not records:
        return ""
    header = ["status", "layers", "run", "reason"]
    cells = ((record.status, record.candidate, record.title, record.reason) for record in records)
    rows = [
        "".join(
            f'<td class="t" data-head="{name}">{escape(text)}</td>'
            for name, text in zip(header, texts, strict=True)
        )
        for texts in cells
    ]
    return "<h2>Runs that count as 0</h2>\n" + html_table(header, rows, LEFT, cards=True)


def _missing(ranking: Ranking) -> str:
    lacking = [row for row in ranking.rows if row.missing]
    if not lacking:
        return ""
    items = "\n".join(
        f"<li><code>{escape(row.candidate)}</code>: {escape('; '.join(row.missing))}</li>"
        for row in lacking
    )
    return f"<h2>Missing runs</h2>\n<ul>\n{items}\n</ul>"
