"""The report of one or several runs: one HTML file that needs no network, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

from mlxhog.report import page
from mlxhog.report.record import Record, different_texts

MOST_NUMBERS = 30_000
"""In all curves of a page together: what keeps it below half a megabyte."""
FEWEST_POINTS, MOST_POINTS = 100, 2000
AXES = (("time", "time"), ("samples", "samples"), ("updates", "updates"))
PARTS = (
    ("workers", "Workers over time", "no worker was recorded"),
    ("staleness", "Staleness", "no step was recorded"),
    ("samples", "Samples of text", "no sample was written"),
    ("events", "What happened", "this run kept no events"),
)
"""Parts of a run's section that the script fills: name, heading, what an empty one says."""


def points_for(records: Sequence[Record]) -> int:
    """Points of a curve, so that a page of these runs stays small."""
    curves = sum(9 + 4 * len(record.history.workers) for record in records)
    return min(max(MOST_NUMBERS // max(curves, 1), FEWEST_POINTS), MOST_POINTS)


def report(records: Sequence[Record]) -> str:
    """Return the page.

    Args:
        records: of the runs, in the order in which they are shown; one or more.
    """
    names = [record.run.name for record in records]
    title = f"{names[0]}: report" if len(names) == 1 else f"{len(names)} runs: report"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sum">{escape(", ".join(names))}</p>' if len(names) > 1 else "",
        "<noscript><p class='partial'>The curves are drawn by a script inside this file, which "
        "this browser does not run.</p></noscript>",
        _notes(records),
        _summary(records),
        curves(),
        *(section(record, k) for k, record in enumerate(records)),
        f"<footer>mlxhog {escape(version('mlxhog'))}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
        "Everything is in this file. Charts: uPlot, MIT licence.</footer>",
    ]
    points = points_for(records)
    return page.document(
        title,
        "\n".join(filter(None, parts)),
        styles=page.chart_styles(),
        scripts=page.chart_scripts(),
        data={"runs": [record.to_json(points) for record in records], "inks": page.inks()},
    )


def _notes(records: Sequence[Record]) -> str:
    notes = [f"{record.run.name}: {note}" for record in records for note in record.notes]
    if (differ := different_texts(records)) is not None:
        notes.append(differ)
    return "\n".join(f'<p class="partial">{escape(note)}</p>' for note in notes)


def _summary(records: Sequence[Record]) -> str:
    """One column of facts for each run."""
    columns = [{**record.facts(), **record.machine()} for record in records]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = (
        f'<th class="t" scope="row">{escape(name)}</th>'
        + "".join(f'<td class="t">{escape(column.get(name, "-"))}</td>' for column in columns)
        for name in names
    )
    header = ["", *(record.run.name for record in records)]
    return "<h2>Result and machine</h2>\n" + page.table(header, rows, left=header)


def curves() -> str:
    """Return the choice of the axis, and the place of the charts."""
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{value}"'
        f"{' checked' if value == 'time' else ''}> {text}</label>"
        for value, text in AXES
    )
    return (
        '<h2>Curves</h2>\n<div class="bar"><fieldset><legend>over</legend>'
        f"{choices}</fieldset>"
        '<span class="when">Drag to zoom, double-click for all; or focus a chart: arrow keys, '
        "+, - and 0.</span></div>\n"
        '<div id="charts" class="charts"></div>'
    )


def section(record: Record, number: int) -> str:
    """Return what belongs to one run alone."""
    filled = "\n".join(
        f'<h3>{escape(heading)}</h3>\n<div data-part="{name}" data-empty="{escape(empty)}"'
        f"{' class=charts' if name == 'staleness' else ''}></div>"
        for name, heading, empty in PARTS
    )
    return (
        f'<section id="run-{number}">\n<h2>{escape(record.run.name)}</h2>\n{filled}\n'
        f"{_configuration(record)}\n{_commands(record)}\n</section>"
    )


def _configuration(record: Record) -> str:
    if not record.config:
        return ""
    changed = record.changed()
    rows = (
        f'<td class="t{" changed" if name in changed else ""}">{escape(name)}</td>'
        f'<td class="t{" changed" if name in changed else ""}"><code>{escape(str(value)[:400])}'
        "</code></td>"
        for name, value in record.config.items()
    )
    table = page.table(["option", "value"], rows, left=["option", "value"])
    differ = ", ".join(f"{name} {value}" for name, value in changed.items()) or "none"
    return (
        f"<h3>Configuration</h3>\n<p>Differs from the defaults: {escape(differ[:1000])}</p>\n"
        f"<details><summary>all {len(record.config)} options</summary>{table}</details>"
    )


def _commands(record: Record) -> str:
    lines = "\n".join(f"{command}  # {what}" for what, command in record.commands())
    return f'<h3>Commands</h3>\n<pre tabindex="0"><code>{escape(lines)}</code></pre>'
