"""The report of one or several runs: one HTML file that needs no network, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

from mlxhog.report import page
from mlxhog.report.record import Record, different_texts
from mlxhog.report.tiles import compressors, tiles

MOST_NUMBERS = 30_000
"""In all curves of a page together: what keeps it below half a megabyte."""
FEWEST_POINTS, MOST_POINTS = 100, 2000
AXES = (("time", "time"), ("samples", "samples"), ("updates", "updates"))
PARTS = (
    ("samples", "Samples of text"),
    ("workers", "Workers over time"),
    ("staleness", "Staleness: updates by others between the read and the write of a step"),
    ("events", "What happened"),
)
"""Parts of a run's section that the script fills; one that it has nothing for is hidden."""


def points_for(records: Sequence[Record]) -> int:
    """Points of a curve, so that a page of these runs stays small."""
    curves = sum(9 + 4 * len(record.history.workers) for record in records)
    return min(max(MOST_NUMBERS // max(curves, 1), FEWEST_POINTS), MOST_POINTS)


def report(records: Sequence[Record]) -> str:
    """Return the page.

    Args:
        records: of the runs, in the order in which they are shown; one or more.
    """
    alone = len(records) == 1
    title = records[0].run.name if alone else f"{len(records)} runs"
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<noscript><p class='partial'>Tiles and curves are drawn by a script inside this file, "
        "which this browser does not run.</p></noscript>",
        _notes(records),
        *(head(record, k, alone=alone) for k, record in enumerate(records)),
        curves(),
        *([] if alone else [_summary(records)]),
        *(
            section(record, k, _summary([record]) if alone else "", alone=alone)
            for k, record in enumerate(records)
        ),
        f"<footer>mlxhog {escape(version('mlxhog'))}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
        "Everything is in this file. Charts: uPlot, MIT licence.</footer>",
    ]
    points = points_for(records)
    runs = [{**record.to_json(points), **glance(record)} for record in records]
    return page.document(
        f"{title}: report",
        "\n".join(filter(None, parts)),
        styles=page.chart_styles(),
        scripts=page.chart_scripts(),
        data={"runs": runs, "inks": page.inks()},
    )


def glance(record: Record) -> dict[str, object]:
    """Return what the script draws as tiles, and as marks beside the losses."""
    shown = [tile.to_json() for tile in tiles(record)]
    return {"tiles": shown, "marks": compressors(record)}


def head(record: Record, number: int, *, alone: bool = True) -> str:
    """Return what stands at the top for one run: its state, what it trains, its tiles."""
    facts, status = record.facts(), record.status
    subject = [str(status[name]) for name in ("model", "data") if status.get(name)]
    words = " on ".join(subject)
    about = ", ".join(filter(None, [words, _with_unit(facts["parameters"], "parameters")]))
    name = "" if alone else f"<h2>{escape(record.run.name)}</h2>\n"
    return (
        f'{name}<p class="sum"><span class="state" id="state-{number}">{escape(record.state)}'
        f"</span> {escape(about)}</p>\n"
        f'<div class="tiles" id="tiles-{number}"></div>'
    )


def _with_unit(number: str, unit: str) -> str:
    return "" if number == "-" else f"{number} {unit}"


def _notes(records: Sequence[Record]) -> str:
    notes = [f"{record.run.name}: {note}" for record in records for note in record.notes]
    if (differ := different_texts(records)) is not None:
        notes.append(differ)
    return "\n".join(f'<p class="partial">{escape(note)}</p>' for note in notes)


def known_facts(record: Record) -> dict[str, str]:
    """Everything that is known of a run and its machine: name -> value."""
    facts = {**record.facts(), **record.machine()}
    return {name: value for name, value in facts.items() if value != "-"}


def _summary(records: Sequence[Record]) -> str:
    """One column of facts for each run."""
    columns = [known_facts(record) for record in records]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = (
        f'<th class="t" scope="row">{escape(name)}</th>'
        + "".join(f'<td class="t">{escape(column.get(name, "-"))}</td>' for column in columns)
        for name in names
    )
    header = ["", *(record.run.name for record in records)] if len(records) > 1 else []
    return "<h2>Run and machine</h2>\n" + page.table(header, rows, left=header)


def curves() -> str:
    """Return the choice of the axis, and the place of the charts; hidden while it has none."""
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{value}"'
        f"{' checked' if value == 'time' else ''}> {text}</label>"
        for value, text in AXES
    )
    return (
        '<div id="curves" hidden>\n<h2>Curves</h2>\n'
        f'<fieldset class="bar"><legend>over</legend>{choices}</fieldset>\n'
        '<div id="charts" class="charts"></div>\n<p class="note" id="flat"></p>\n'
        '<p class="when">Drag in a chart to zoom, double-click for the whole. On the keyboard: '
        "Tab to a chart, then arrow keys, +, - and 0.</p>\n</div>"
    )


def section(record: Record, number: int, tables: str, *, alone: bool = True) -> str:
    """Return what belongs to one run alone, below the curves.

    Args:
        record: of the run.
        number: of the run on this page, from 0.
        tables: HTML that stands before its configuration.
        alone: whether the page is about this run only.
    """
    level = "h2" if alone else "h3"
    filled = "\n".join(
        f'<div data-part="{name}" hidden><{level}>{escape(heading)}</{level}><div></div></div>'
        for name, heading in PARTS
    )
    parts = [
        "" if alone else f"<h2>{escape(record.run.name)}</h2>",
        filled,
        tables,
        _configuration(record, level),
        _commands(record, level),
    ]
    return f'<section id="run-{number}">\n' + "\n".join(filter(None, parts)) + "\n</section>"


def _configuration(record: Record, level: str) -> str:
    if not record.config:
        return ""
    changed, spelled = record.changed(), record.options_in_words()
    rows = (
        f'<td class="t{" changed" if name in changed else ""}">{escape(name)}</td>'
        f'<td class="t{" changed" if name in changed else ""}"><code>{escape(value[:400])}'
        "</code></td>"
        for name, value in spelled.items()
    )
    table = page.table(["option", "value"], rows, left=["option", "value"])
    differ = ", ".join(f"{name} {spelled[name]}" for name in changed) or "nothing"
    return (
        f"<{level}>Configuration</{level}>\n"
        f"<p>Differs from the defaults: {escape(differ[:1000])}</p>\n"
        f"<details><summary>all {len(record.config)} options</summary>{table}</details>"
    )


def _commands(record: Record, level: str) -> str:
    lines = "\n".join(
        f"<dt>{escape(what)}</dt><dd><code>{escape(command)}</code></dd>"
        for what, command in record.commands()
    )
    return f'<{level}>Commands</{level}>\n<dl class="commands">\n{lines}\n</dl>'
