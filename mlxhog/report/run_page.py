"""The page of one or several runs: a file that needs no network, or served by a board.

Elements with `data-live` change while a run trains; a board replaces them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

from mlxhog.base.quantities import (
    format_count,
    format_duration,
    format_number,
    format_share,
)
from mlxhog.report import page
from mlxhog.report.charts import LIGHT
from mlxhog.report.metrics import COUNTS, WORKER_COLUMNS, number, sound_marks
from mlxhog.report.record import RunEvent, RunRecord, different_texts
from mlxhog.report.shares import rows

MOST_NUMBERS = 30_000
"""Numbers in all curves of a page together; this keeps the page below half a megabyte."""
FEWEST_POINTS, MOST_POINTS = 100, 2000
AXES = (("time", "time"), ("samples", "samples"), ("updates", "updates"))
COMPARED = ("gzip", "xz", COUNTS)
MOST_TEXT = 280
"""Characters of the newest sample."""
NEWEST, MOST_SAMPLES, MOST_EVENTS = 5, 40, 300
"""Of samples and events the newest are shown, others are folded, and older ones left out."""


def points_for(records: Sequence[RunRecord]) -> int:
    """Number of points of a curve that keeps a page of these runs small."""
    curves = sum(9 + 4 * len(record.history.workers) for record in records)
    return min(max(MOST_NUMBERS // max(curves, 1), FEWEST_POINTS), MOST_POINTS)


def report(records: Sequence[RunRecord], *, buttons: str = "") -> str:
    """Return the page.

    Args:
        records: records of one or more runs, in the order of the page.
        buttons: HTML of a board, which follows its run; "" for a report.
    """
    alone = len(records) == 1
    title = records[0].run.name if alone else f"{len(records)} runs"
    about = f"mlxhog {version('mlxhog')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
    about += "Everything is in this file."
    if buttons:
        about = "This page follows the run while <code>mlxhog board</code> runs."
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<noscript><p class='partial'>A script in this file draws the curves, but this "
        "browser does not run scripts.</p></noscript>",
        f'<div id="notes" data-live>{_notes(records)}</div>',
        *(head(record, k, alone=alone) for k, record in enumerate(records)),
        buttons,
        curves(),
        *([] if alone else [_summary(records)]),
        *(section(record, k, alone=alone) for k, record in enumerate(records)),
        f"<footer>{about} Charts: uPlot, MIT licence.</footer>",
    ]
    return page.document(
        title if buttons else f"{title}: report",
        "\n".join(filter(None, parts)),
        styles=page.chart_styles(),
        scripts=[*page.chart_scripts(), *([page.asset("board.js")] if buttons else [])],
        data=data(records),
        talks=bool(buttons),
    )


def data(records: Sequence[RunRecord]) -> dict[str, object]:
    """Return the data of the page's scripts."""
    points = points_for(records)
    runs = [
        {
            "name": record.run.name,
            "seq_len": record.seq_len,
            "workers": {slot: one.backend for slot, one in sorted(record.history.workers.items())},
            "marks": without_network(record),
            **record.history.drawn(points),
        }
        for record in records
    ]
    return {"runs": runs, "n_inks": len(LIGHT.inks)}


def tiles(record: RunRecord) -> str:
    """The numbers at the top of the page; one that is not known yet is left out."""
    shown = list[str]()

    def tile(name: str, value: str, detail: str = "", bar: str = "", kind: str = "tile") -> None:
        parts = {"name": escape(name), "value": escape(value), "share": bar}
        filled = "".join(
            f'<div class="{part}">{text}</div>'
            for part, text in (parts | {"detail": escape(detail)}).items()
            if text
        )
        shown.append(f'<div class="{kind}">{filled}</div>')

    if len(record.history):
        now, facts = record.progress, record.facts()
        tile("step", facts["steps"], f"{facts['tokens']} tokens")
        bar = f'<div style="width: {100 * min(now.budget_fraction, 1):.1f}%"></div>'
        tile("of the budget", format_share(now.budget_fraction), bar=bar)
        if not record.is_running:
            tile("training time", facts["training time"])
        elif now.eta_s is not None:
            tile("time left", format_duration(now.eta_s), f"{facts['training time']} trained")
        bits, larger = record.last("val_bits_per_byte"), record.larger_score
        if bits is not None:
            beside = [f"{name} {number(mark)}" for name, mark in without_network(record).items()]
            final = "" if larger is None else f"{number(larger[0])} of {larger[1]}"
            details = [record.scored_at.strip(), ", ".join(beside), final]
            tile("held-out bits per byte", number(bits), "; ".join(filter(None, details)))
        n = len(record.history.workers)
        speed = format_count(now.tokens_per_s) if record.is_running else facts["tokens/s"]
        tile("tokens/s", speed, f"{n} worker{'s' * (n != 1)}" if n else "")
    if record.samples:
        sample = record.samples[-1]
        text = sample.text if len(sample.text) <= MOST_TEXT else f"{sample.text[:MOST_TEXT]} ..."
        tile("newest sample", text, _when(sample), kind="tile text")
    return "".join(shown)


def without_network(record: RunRecord) -> dict[str, float]:
    """Bits per byte of the run's held-out text without a network, by its compressor or counts."""
    marks = sound_marks(record.progress.marks)
    return {name: marks[name] for name in COMPARED if name in marks}


def head(record: RunRecord, k: int, *, alone: bool = True) -> str:
    """Return the head of a run's part: its state, model and data, and tiles."""
    facts, status = record.facts(), record.status
    subject = " on ".join(str(status[name]) for name in ("model", "data") if status.get(name))
    size = "" if facts["parameters"] == "-" else f"{facts['parameters']} parameters"
    about = ", ".join(filter(None, [subject, size]))
    name = "" if alone else f"<h2>{escape(record.run.name)}</h2>\n"
    return (
        f'{name}<p class="sum">'
        f'<span class="state" id="state-{k}" data-live>{escape(record.state)}</span> '
        f'{escape(about)}</p>\n<div class="tiles" id="tiles-{k}" data-live>'
        f"{tiles(record)}</div>"
    )


def _notes(records: Sequence[RunRecord]) -> str:
    notes = [f"{record.run.name}: {note}" for record in records for note in record.notes]
    if (differ := different_texts(records)) is not None:
        notes.append(differ)
    return "\n".join(f'<p class="partial">{escape(note)}</p>' for note in notes)


def _summary(records: Sequence[RunRecord]) -> str:
    """The facts of each run; of several, one column for each."""
    columns = [
        {
            name: value
            for name, value in {**record.facts(), **record.machine()}.items()
            if value != "-"
        }
        for record in records
    ]
    table = page.facts(columns[0].items())
    if len(records) > 1:
        names = dict.fromkeys(name for column in columns for name in column)
        rows = ([name, *(column.get(name, "-") for column in columns)] for name in names)
        table = page.text_cards(["", *(record.run.name for record in records)], rows)
    return f'<h2>Run and machine</h2>\n<div id="facts" data-live>{table}</div>'


def _workers(record: RunRecord, number: int, level: str) -> str:
    """The newest numbers of each worker."""
    header = [name for name, _ in WORKER_COLUMNS]
    rows = ([cell(one)[:40] for _, cell in WORKER_COLUMNS] for one in record.progress.workers)
    table = f"<{level}>Workers</{level}>\n{page.text_cards(header, rows)}"
    return f'<div id="now-{number}" data-live>{table if record.history.workers else ""}</div>'


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


def section(record: RunRecord, number: int, *, alone: bool = True) -> str:
    """Return the section of one run, below the curves.

    Args:
        record: record of the run.
        number: number of the run on this page, from 0.
        alone: whether the page is about this run only.
    """
    level = "h2" if alone else "h3"
    filled = "\n".join(
        f'<div data-part="{name}" id="{name}-{number}" data-live>'
        + (f"<{level}>{heading}</{level}><div>{body}</div>" if body else "")
        + "</div>"
        for name, heading, body in (
            ("samples", "Samples of text", _samples(record)),
            ("shares", "Where the time goes: shares of a step", _shares(record)),
            ("events", "Events", _events(record)),
        )
    )
    parts = [
        "" if alone else f"<h2>{escape(record.run.name)}</h2>",
        filled,
        _workers(record, number, level),
        _summary([record]) if alone else "",
        _configuration(record, level),
        _commands(record, level),
    ]
    return f'<section id="run-{number}">\n' + "\n".join(filter(None, parts)) + "\n</section>"


def _samples(record: RunRecord) -> str:
    samples = record.samples[-MOST_SAMPLES:]
    return _newest_first("samples", [(event, event.text) for event in samples])


def _events(record: RunRecord) -> str:
    others = [event for event in record.events if event.kind != "sample"][-MOST_EVENTS:]
    words = {"message": "", "strategy": "", "checkpoint": "saved ", "ended": "ended: "}
    spelled = [
        words.get(event.kind, f"{event.kind}: ") + re.sub("^.*/(?=checkpoints/)", "", event.text)
        for event in others
    ]
    return _newest_first("events", list(zip(others, spelled, strict=True)))


def _newest_first(kind: str, events: Sequence[tuple[RunEvent, str]]) -> str:
    """A list of events, older ones folded."""
    items = [
        f'<li><span class="when">{_when(event)}</span><p>{escape(text)}</p></li>'
        for event, text in events[::-1]
    ]
    shown, older = (
        f'<ul class="{kind}">{"".join(some)}</ul>' if some else ""
        for some in (items[:NEWEST], items[NEWEST:])
    )
    folded = f"<summary>{len(items) - NEWEST} older</summary>{older}"
    return shown + (f"<details>{folded}</details>" if older else "")


def _when(event: RunEvent) -> str:
    if event.step == 0:
        return "at the start"
    return f"after {format_duration(event.elapsed_s)}, step {format_number(event.step)}"


def _shares(record: RunRecord) -> str:
    header, *others = rows(record.shares()) or [[]]
    return page.text_cards(header, others) if others else ""


def _configuration(record: RunRecord, level: str) -> str:
    if not record.config:
        return ""
    spelled = {name: value[:400] for name, value in record.options_in_words().items()}
    differ = ", ".join(f"{name} {spelled[name]}" for name in record.changed()) or "nothing"
    return (
        f"<{level}>Configuration</{level}>\n"
        f"<p>Differs from the defaults: {escape(differ[:1000])}</p>\n"
        f"<details><summary>all {len(spelled)} options</summary>"
        f"{page.facts(spelled.items())}</details>"
    )


def _commands(record: RunRecord, level: str) -> str:
    lines = "\n".join(
        f"<dt>{escape(purpose)}</dt><dd><code>{escape(command)}</code></dd>"
        for purpose, command in record.commands()
    )
    return f'<{level}>Commands</{level}>\n<dl class="commands">\n{lines}\n</dl>'
