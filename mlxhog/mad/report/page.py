"""One HTML page of a study: no network, no script, light and dark, on paper too."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from mlxhog.config.quantities import format_clock
from mlxhog.mad.report.leaderboard import NOTE, ceiling_note, cells, lost, order_note, run_name
from mlxhog.mad.report.plots import Plot
from mlxhog.mad.report.ranking import Ranking
from mlxhog.mad.scores import Row
from mlxhog.report.charts import DARK, LIGHT

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #d5d9de; --soft: #59636e;
  --heat: 0 114 178; --warn: #9a4b00; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e4e6e9;
  --faint: #3a3f47; --soft: #9aa4b0; --heat: 77 178 255; --warn: #ffc14d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.sum, figcaption, footer, p.note { color: var(--soft); }
.partial { border-left: 4px solid var(--warn); padding-left: .8rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--faint); text-align: right; }
th { font-weight: 600; vertical-align: bottom; } .t { text-align: left; }
td.h { background: rgb(var(--heat) / calc(var(--v) * .45)); }
code { font: .92em ui-monospace, monospace; } li { margin: .15rem 0; }
figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; height: auto; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; } .scroll { overflow: visible; }
  td.h { print-color-adjust: exact; } }
"""


def page(ranking: Ranking, plots: Iterable[Plot], *, version: str) -> str:
    """Return the page; plots are drawn twice each, for light and for dark screens."""
    title = f"{ranking.study}: MAD, suite {ranking.suite}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sum">{escape(_summary(ranking))}</p>',
        _lacking(ranking),
        _leaderboard(ranking),
        _facts(ranking),
        *map(_figure, plots),
        _troubles(ranking),
        _missing(ranking),
        f"<footer>mlxhog {escape(version)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Everything is "
        f"in this file; <code>mlxhog mad board {escape(ranking.study)} --json</code> has the "
        "numbers.</footer>",
    ]
    body = "\n".join(filter(None, parts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _summary(ranking: Ranking) -> str:
    of = "" if ranking.planned is None else f" of {ranking.planned}"
    ends = ", ".join(f"{n} {name}" for name, n in ranking.statuses.items())
    return (
        f"{len(ranking.rows)} candidates, {len(ranking.records)}{of} runs"
        f"{f' ({ends})' if ends else ''}, {format_clock(ranking.seconds)} of training"
    )


def _lacking(ranking: Ranking) -> str:
    return f'<p class="partial">{escape(ranking.lacking)}</p>' if ranking.lacking else ""


def _leaderboard(ranking: Ranking) -> str:
    if not ranking.rows:
        return ""
    header, rows = cells(ranking)
    notes = [NOTE, ceiling_note(ranking), order_note(ranking)]
    return (
        "<h2>Leaderboard</h2>\n"
        + _table(
            header,
            [_row(ranking, *pair) for pair in zip(rows, ranking.rows, strict=True)],
        )
        + "".join(f'\n<p class="note">{escape(note)}</p>' for note in notes if note)
    )


def _row(ranking: Ranking, texts: Sequence[str], row: Row) -> str:
    """A row's cells, those of tasks in a color that rises with the accuracy."""
    rank, layers, score, *numbers, status = map(escape, texts)
    accuracies: list[float | None] = [row.tasks.get(task) for task in ranking.tasks]
    costs = 3  # parameters, state, time
    no_heat: list[float | None] = [None] * (len(numbers) - len(accuracies) - costs)
    cells = [f"<td>{rank}</td>", f'<td class="t"><code>{layers}</code></td>']
    cells.append(f"<td><b>{score}</b></td>")
    for text, value in zip(numbers, [*no_heat, *accuracies, *[None] * costs], strict=True):
        heat = "" if value is None else f' class="h" style="--v:{value:.3f}"'
        cells.append(f"<td{heat}>{text}</td>")
    return "".join([*cells, f'<td class="t">{status}</td>'])


def _table(header: Sequence[str], rows: Iterable[str]) -> str:
    left_aligned = ("layers", "status", "", "run", "reason")
    heads = "".join(
        f'<th class="t">{escape(head)}</th>' if head in left_aligned else f"<th>{escape(head)}</th>"
        for head in header
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _facts(ranking: Ranking) -> str:
    if not ranking.facts:
        return ""
    rows = "\n".join(
        f'<tr><th class="t">{escape(name)}</th><td class="t">{escape(value)}</td></tr>'
        for name, value in ranking.facts
    )
    return f"<h2>Protocol</h2>\n<table><tbody>\n{rows}\n</tbody></table>"


def _figure(plot: Plot) -> str:
    light, dark = (_inline(plot.png(theme)) for theme in (LIGHT, DARK))
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
    rows = [
        f'<td class="t">{escape(record.status)}</td>'
        f'<td class="t"><code>{escape(record.candidate)}</code></td>'
        f'<td class="t">{escape(run_name(record))}</td>'
        f'<td class="t">{escape(record.reason)}</td>'
        for record in records
    ]
    return "<h2>Runs that count as 0</h2>\n" + _table(["status", "layers", "run", "reason"], rows)


def _missing(ranking: Ranking) -> str:
    lacking = [row for row in ranking.rows if row.missing]
    if not lacking:
        return ""
    items = "\n".join(
        f"<li><code>{escape(row.candidate)}</code>: {escape('; '.join(row.missing))}</li>"
        for row in lacking
    )
    return f"<h2>What is missing</h2>\n<ul>\n{items}\n</ul>"
