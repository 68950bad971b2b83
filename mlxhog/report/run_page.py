"""The report of one or several runs: one HTML file that needs no network, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

from mlxhog.report import page
from mlxhog.report.record import RunRecord, different_texts
from mlxhog.report.tiles import tiles, without_network

MOST_NUMBERS = 30_000
"""Numbers in all curves of a page together; this keeps the page below half a megabyte."""
FEWEST_POINTS, MOST_POINTS = 100, 2000
AXES = (("time", "time"), ("samples", "samples"), ("updates", "updates"))
PARTS = (
    ("samples", "Samples of text"),
    ("workers", "Workers over time"),
    ("shares", "Where the time goes: shares of a step"),
    ("staleness", "Staleness: updates by others between the read and the write of a step"),
    ("events", "Events"),
)
"""Parts of a run's section that the script fills; an empty part is hidden."""


def points_for(records: Sequence[RunRecord]) -> int:
    """Number of points of a curve that keeps a page of these runs small."""
    curves = sum(9 + 4 * len(record.history.workers) for record in records)
    return min(max(MOST_NUMBERS // max(curves, 1), FEWEST_POINTS), MOST_POINTS)


def report(records: Sequence[RunRecord]) -> str:
    """Return the page.

    Args:
        records: records of one or more runs, in the order of the page.
    """
    alone = len(records) == 1
    title = records[0].run.name if alone else f"{len(records)} runs"
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<noscript><p class='partial'>A script in this file draws the tiles and curves, but this "
        "browser does not run scripts.</p></noscript>",
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


def glance(record: RunRecord) -> dict[str, object]:
    """Return the tiles, and the marks of the loss chart."""
    shown = [tile.to_json() for tile in tiles(record)]
    return {"tiles": shown, "marks": without_network(record)}


def head(record: RunRecord, number: int, *, alone: bool = True) -> str:
    """Return the head of a run's part: its state, model and data, and tiles."""
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


def _notes(records: Sequence[RunRecord]) -> str:
    notes = [f"{record.run.name}: {note}" for record in records for note in record.notes]
    if (differ := different_texts(records)) is not None:
        notes.append(differ)
    return "\n".join(f'<p class="partial">{escape(note)}</p>' for note in notes)


def known_facts(record: RunRecord) -> dict[str, str]:
    """The known facts about a run and its machine: name -> value."""
    facts = {**record.facts(), **record.machine()}
    return {name: value for name, value in facts.items() if value != "-"}


def _summary(records: Sequence[RunRecord]) -> str:
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
    """Return the choice of the axis, and the place of the charts; hidden without charts."""
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


def section(record: RunRecord, number: int, tables: str, *, alone: bool = True) -> str:
    """Return the section of one run, below the curves.

    Args:
        record: record of the run.
        number: number of the run on this page, from 0.
        tables: HTML to put before its configuration.
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


def _configuration(record: RunRecord, level: str) -> str:
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


def _commands(record: RunRecord, level: str) -> str:
    lines = "\n".join(
        f"<dt>{escape(purpose)}</dt><dd><code>{escape(command)}</code></dd>"
        for purpose, command in record.commands()
    )
    return f'<{level}>Commands</{level}>\n<dl class="commands">\n{lines}\n</dl>'
