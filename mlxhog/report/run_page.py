"""The page of one or several runs: a file that needs no network, or served by a board.

Elements with `data-live` change while a run trains; a board replaces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from typing import Any

from mlxhog.base.quantities import (
    format_bytes,
    format_count,
    format_duration,
    format_number,
    format_share,
)
from mlxhog.report import page
from mlxhog.report.metrics import COUNTS, WorkerReport, number, sound_marks
from mlxhog.report.record import RunRecord, different_texts

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
COMPARED = ("gzip", "xz", COUNTS)
MOST_TEXT = 280
"""Characters of the newest sample."""


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
        "<noscript><p class='partial'>A script in this file draws the tiles and curves, but this "
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
            **record.to_json(points),
            "tiles": tiles(record),
            "marks": without_network(record),
        }
        for record in records
    ]
    return {"runs": runs, "inks": page.inks()}


def tiles(record: RunRecord) -> list[dict[str, Any]]:
    """Return the numbers at the top of the page; one that is not known yet is left out.

    Each has a name, a value and a detail as plain texts, the length of a bar from 0 to 1 or None,
    and whether the value is prose, which takes a whole row.
    """
    shown: list[dict[str, Any]] = []

    def tile(
        name: str, value: str, detail: str = "", share: float | None = None, prose: bool = False
    ) -> None:
        shown.append(
            {"name": name, "value": value, "detail": detail, "share": share, "is_text": prose}
        )

    if len(record.history):
        now, facts = record.progress, record.facts()
        tile("step", facts["steps"], f"{facts['tokens']} tokens")
        tile("of the budget", format_share(now.budget_fraction), share=now.budget_fraction)
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
        when = f"after {format_duration(sample.elapsed_s)}, step {format_number(sample.step)}"
        tile("newest sample", text, when, prose=True)
    return shown


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
        f'{escape(about)}</p>\n<div class="tiles" id="tiles-{k}"></div>'
    )


def _notes(records: Sequence[RunRecord]) -> str:
    notes = [f"{record.run.name}: {note}" for record in records for note in record.notes]
    if (differ := different_texts(records)) is not None:
        notes.append(differ)
    return "\n".join(f'<p class="partial">{escape(note)}</p>' for note in notes)


def _summary(records: Sequence[RunRecord]) -> str:
    """One column of facts for each run."""
    columns = [
        {
            name: value
            for name, value in {**record.facts(), **record.machine()}.items()
            if value != "-"
        }
        for record in records
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = (
        f'<th class="t" scope="row">{escape(name)}</th>'
        + "".join(f'<td class="t">{escape(column.get(name, "-"))}</td>' for column in columns)
        for name in names
    )
    header = ["", *(record.run.name for record in records)] if len(records) > 1 else []
    table = page.table(header, rows, left=header)
    return f'<h2>Run and machine</h2>\n<div id="facts" data-live>{table}</div>'


def _workers(record: RunRecord, number: int, level: str) -> str:
    """The newest numbers of each worker."""
    header = ("worker", "backend", "state", "steps", "tok/s", "staleness mean / max", "memory")
    rows = (
        "".join(
            f'<td class="t" data-head="{name}">{escape(text)}</td>'
            for name, text in zip(header, _cells(worker), strict=True)
        )
        for worker in record.progress.workers
    )
    table = page.table(header, rows, left=header, cards=True)
    shown = f"<{level}>Workers</{level}>\n{table}" if record.history.workers else ""
    return f'<div id="now-{number}" data-live>{shown}</div>'


def _cells(worker: WorkerReport) -> list[str]:
    return [
        str(worker.slot),
        worker.backend[:40],
        worker.state[:20],
        format_number(worker.steps),
        format_count(worker.tokens_per_s),
        f"{worker.mean_staleness:.1f} / {format_number(worker.max_staleness)}",
        format_bytes(worker.memory_bytes),
    ]


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
        f'<div data-part="{name}" hidden><{level}>{escape(heading)}</{level}><div></div></div>'
        for name, heading in PARTS
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
