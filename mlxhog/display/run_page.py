"""The page of one or several runs: a file that needs no network, or served by a dashboard.

Elements with `data-live` change while a run trains; a dashboard replaces them.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

from mlxhog.base.quantities import format_count, format_duration, format_number, format_share
from mlxhog.display import page
from mlxhog.display.charts import LIGHT, without_network
from mlxhog.display.metrics import WORKER_COLUMNS, best_of, format_loss, rows
from mlxhog.display.record import RunEvent, RunRecord, different_texts

MAX_NUMBERS = 30_000  # points of all curves of a page; this keeps the page below half a megabyte
MIN_POINTS, MAX_POINTS = 100, 2000
MAX_TEXT = 280  # characters of the newest sample
NEWEST, MAX_SAMPLES, MAX_EVENTS = 5, 40, 300
"""Newest samples and events shown, and limits of those folded; older ones are omitted."""
CURVES = """\
<noscript><p class='partial'>A script in this file draws the curves, but this browser does not run
scripts.</p></noscript>
<div id="curves" hidden>
<h2>Curves</h2>
<fieldset class="bar"><legend>over</legend>
<label><input type="radio" name="axis" value="time" checked> time</label>
<label><input type="radio" name="axis" value="samples"> samples</label>
<label><input type="radio" name="axis" value="steps"> steps</label></fieldset>
<div id="charts" class="charts"></div>
<p class="when">Drag in a chart to zoom, double-click for the whole. Arrow keys read it.</p>
</div>"""
"""The choice of the axis, and the place of the charts; hidden without charts."""


def report(records: Sequence[RunRecord], *, buttons: str = "") -> str:
    """Return the page of one or more runs; a dashboard's, which follows its run, has buttons."""
    alone = len(records) == 1
    title = records[0].run.name if alone else f"{len(records)} runs"
    about = f"mlxhog {version('mlxhog')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
    about += "Everything is in this file."
    if buttons:
        about = "This page follows the run while <code>mlxhog dashboard</code> runs."
    notes = [f"{record.run.name}: {note}" for record in records for note in record.notes]
    notes += different_texts(records)
    parts = [
        "" if alone else f"<h1>{escape(title)}</h1>",
        _live("notes", "\n".join(f'<p class="partial">{escape(note)}</p>' for note in notes)),
        *(_head(record, k) for k, record in enumerate(records)),
        buttons,
        CURVES,
        _titled("Run and machine", _live("facts", _facts(records))),
        *(_section(record, k, named=not alone) for k, record in enumerate(records)),
        f"<footer>{about} Charts: uPlot, MIT license.</footer>",
    ]
    return page.document(
        title if buttons else f"{title}: report",
        "\n".join(filter(None, parts)),
        styles=page.chart_styles(),
        scripts=[*page.chart_scripts(), *([page.asset("dashboard.js")] if buttons else [])],
        data=_data(records),
        talks=bool(buttons),
    )


def _data(records: Sequence[RunRecord]) -> dict[str, object]:
    curves = sum(9 + 4 * len(record.history.backends) for record in records)
    points = min(max(MAX_NUMBERS // max(curves, 1), MIN_POINTS), MAX_POINTS)
    runs = [
        {
            "name": record.run.name,
            "seq_len": record.config.get("seq_len") or 1,
            "workers": dict(sorted(record.history.backends.items())),
            "baselines": without_network(record),
            **record.history.drawn(points),
        }
        for record in records
    ]
    return {"runs": runs, "n_inks": len(LIGHT.inks)}


def _live(name: str, body: str, tag: str = "div", kind: str = "") -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<{tag} id="{name}"{look} data-live>{body}</{tag}>'


def _titled(heading: str, body: str) -> str:
    return f"<h2>{heading}</h2>\n{body}" if body else ""


def _head(record: RunRecord, k: int) -> str:
    status, size = record.status, record.facts()["parameters"]
    subject = " on ".join(str(status[name]) for name in ("model", "data") if status.get(name))
    about = ", ".join(filter(None, [subject, "" if size == "-" else f"{size} parameters"]))
    state = _live(f"state-{k}", escape(record.state), "span", "state")
    name, numbers = escape(record.run.name), _live(f"tiles-{k}", tiles(record), kind="tiles")
    return f'<h1>{name}</h1>\n<p class="sum">{state} {escape(about)}</p>\n{numbers}'


def tiles(record: RunRecord) -> str:
    """Return the numbers at the top of the page; one that is not known yet is left out."""
    now, facts, shown = record.progress, record.facts(), list[str]()

    def tile(name: str, value: str, *details: str, bar: str = "", kind: str = "tile") -> None:
        detail = "; ".join(filter(None, details))
        below = f'<div class="detail">{escape(detail)}</div>' if detail else ""
        shown.append(
            f'<div class="{kind}"><div class="name">{escape(name)}</div>'
            f'<div class="value">{escape(value)}</div>{bar}{below}</div>'
        )

    if len(record.history):
        n, width = len(record.history.backends), 100 * min(now.budget_fraction, 1)
        bar = f'<div class="share"><div style="width: {width:.1f}%"></div></div>'
        epoch = "" if now.epoch is None else f"epoch {now.epoch:.2f}"
        tile("step", facts["steps"], f"{facts['tokens']} tokens", epoch)
        tile("of the budget", format_share(now.budget_fraction), bar=bar)
        if not record.is_running:
            tile("training time", facts["training time"])
        elif now.eta_s is not None:
            tile("time left", format_duration(now.eta_s), f"{facts['training time']} trained")
        if (bits := record.last("val_bits_per_byte")) is not None:
            baselines = [
                f"{name} {format_loss(one)}" for name, one in without_network(record).items()
            ]
            larger = facts.get("larger validation score", "")
            details = record.scored_at.strip(), best_of(now), ", ".join(baselines), larger
            tile("validation bits per byte", format_loss(bits), *details)
        speed = format_count(now.tokens_per_s) if record.is_running else facts["tokens/s"]
        tile("tokens/s", speed, f"{n} worker{'s' * (n != 1)}" if n else "")
    for sample in record.samples[-1:]:
        text = sample.text if len(sample.text) <= MAX_TEXT else f"{sample.text[:MAX_TEXT]} ..."
        tile("newest sample", text, _when(sample), kind="tile text")
    return "".join(shown)


def _facts(records: Sequence[RunRecord]) -> str:
    columns = [{k: v for k, v in record.facts().items() if v != "-"} for record in records]
    if len(records) == 1:
        return page.facts(columns[0].items())
    names = dict.fromkeys(name for column in columns for name in column)
    cells = ([name, *(column.get(name, "-") for column in columns)] for name in names)
    return page.text_cards(["", *(record.run.name for record in records)], cells)


def _section(record: RunRecord, k: int, *, named: bool) -> str:
    workers = [[cell(one)[:40] for _, cell in WORKER_COLUMNS] for one in record.progress.workers]
    parts, *shares = rows(record.shares()) or [[]]
    samples = ((one, one.text) for one in record.samples[-MAX_SAMPLES:])
    live = (
        ("samples", "Samples of text", _newest_first("samples", samples)),
        ("shares", "Where the time goes: shares of a step", page.text_cards(parts, shares)),
        ("events", "Events", _newest_first("events", _events(record))),
        ("now", "Workers", page.text_cards([name for name, _ in WORKER_COLUMNS], workers)),
    )
    body = [
        f"<h1>{escape(record.run.name)}</h1>" if named else "",
        *(_live(f"{name}-{k}", _titled(heading, part)) for name, heading, part in live),
        _titled("Configuration", _configuration(record)),
        _titled("Commands", _commands(record)),
    ]
    return f'<section id="run-{k}">\n' + "\n".join(filter(None, body)) + "\n</section>"


def _events(record: RunRecord) -> Iterable[tuple[RunEvent, str]]:
    words = {"message": "", "strategy": "", "checkpoint": "saved ", "ended": "ended: "}
    for event in [event for event in record.events if event.kind != "sample"][-MAX_EVENTS:]:
        place = re.sub("^.*/(?=checkpoints/)", "", event.text)
        yield event, words.get(event.kind, f"{event.kind}: ") + place


def _newest_first(kind: str, events: Iterable[tuple[RunEvent, str]]) -> str:
    items = [
        f'<li><span class="when">{_when(event)}</span><p>{escape(text)}</p></li>'
        for event, text in events
    ][::-1]
    newest, older = (
        f'<ul class="{kind}">{"".join(some)}</ul>' * bool(some)
        for some in (items[:NEWEST], items[NEWEST:])
    )
    folded = f"<details><summary>{len(items) - NEWEST} older</summary>{older}</details>"
    return newest + folded * bool(older)


def _when(event: RunEvent) -> str:
    if event.step == 0:
        return "at the start"
    return f"after {format_duration(event.elapsed_s)}, step {format_number(event.step)}"


def _configuration(record: RunRecord) -> str:
    if not record.config:
        return ""
    spelled = {name: value[:400] for name, value in record.options_in_words().items()}
    differ = ", ".join(f"{name} {spelled[name]}" for name in record.changed()) or "nothing"
    return (
        f"<p>Differs from the defaults: {escape(differ[:1000])}</p>\n"
        f"<details><summary>all {len(spelled)} options</summary>"
        f"{page.facts(spelled.items())}</details>"
    )


def _commands(record: RunRecord) -> str:
    lines = "\n".join(
        f"<dt>{escape(purpose)}</dt><dd><code>{escape(command)}</code></dd>"
        for purpose, command in record.commands().items()
    )
    return f'<dl class="commands">\n{lines}\n</dl>'
