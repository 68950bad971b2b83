"""Drawings of a run as SVG: its workers over time, and their steps by staleness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape

from mlxhog.base.quantities import format_duration, format_number
from mlxhog.report import page
from mlxhog.report.charts import LIGHT
from mlxhog.report.record import RunRecord

MOST_SPANS, MOST_ROWS = 2000, 500
"""Number of newest intervals of workers in the drawing, and in its table."""
MOST_BARS = 24
"""The largest staleness with a bar of its own; larger ones share the last bar."""


def color(record: RunRecord, slot: int) -> str:
    """The color of a worker; its lines in the charts have it, too."""
    own = LIGHT.inks[2:]  # the first two are training and held-out text
    return f"var(--ink-{2 + sorted(record.history.workers).index(slot) % len(own)})"


def timeline(record: RunRecord) -> str:
    """A row per worker: the intervals of its processes; vertical lines are checkpoints."""
    history, spans = record.history, record.history.spans[-MOST_SPANS:]
    if not history.workers:
        return ""
    end_s = max(1.0, *(span.end_s for span in spans), history.columns["elapsed_s"][-1])

    def at(seconds: float) -> str:
        return f"{100 * min(seconds / end_s, 1):.3f}%"

    saved = [event for event in record.events if event.kind == "checkpoint"]
    lines = "".join(
        f'<line x1="{at(event.elapsed_s)}" x2="{at(event.elapsed_s)}" y1="0" y2="18" class="mark">'
        f"<title>checkpoint at step {event.step}</title></line>"
        for event in saved
    )
    names = {slot: escape(f"{slot} {one.backend}") for slot, one in sorted(history.workers.items())}
    tracks, rows = dict.fromkeys(names, ""), list[str]()
    header = ("worker", "state", "process", "from", "to")
    for span in spans:
        state, begin, end = escape(span.state), *map(format_duration, (span.begin_s, span.end_s))
        ink = "#c62828" if span.state == "dead" else color(record, span.slot)
        tracks[span.slot] += (
            f'<rect x="{at(span.begin_s)}" y="0" width="{at(span.end_s - span.begin_s)}" '
            f'height="18" style="fill: {ink}; opacity: {0.35 if state == "starting" else 1}">'
            f"<title>{state}, process {span.pid}, {begin} to {end}</title></rect>"
        )
        cells = (names[span.slot], state, span.pid, begin, end)
        rows.append(
            "".join(
                f'<td class="t" data-head="{name}">{cell}</td>'
                for name, cell in zip(header, cells, strict=True)
            )
        )
    drawn = "".join(
        f'<span>{name}</span><svg width="100%" height="18" role="img" '
        f'aria-label="worker {slot} over time">{tracks[slot]}{lines}</svg>'
        for slot, name in names.items()
    )
    ends = "".join(f"<span>{format_duration(s)}</span>" for s in (0, end_s / 2, end_s))
    states = {span.state for span in spans}
    parts = ("lines: checkpoints" * bool(saved), "pale: starting" * ("starting" in states))
    note = ", ".join(filter(None, (*parts, "red: dead" * ("dead" in states))))
    table = page.table(header, rows[-MOST_ROWS:], left=header, cards=True)
    return (
        f'<div class="timeline">{drawn}<span></span><div class="ends">{ends}</div></div>'
        f'<p class="when">{note}</p><details><summary>the same as a table</summary>{table}'
        "</details>"
    )


def staleness(record: RunRecord) -> str:
    """Steps by their staleness, of all workers and of each; "" for fewer than two workers."""
    workers = sorted(record.history.workers.items())
    counts = {slot: record.history.staleness(slot) for slot, _ in workers}
    if len(workers) < 2:
        return ""
    drawings = [_histogram(sum(counts.values(), Counter()), record, "all workers", "var(--soft)")]
    for slot, one in workers:
        title = escape(f"{slot} {one.backend}")
        drawings.append(_histogram(counts[slot], record, title, color(record, slot)))
    return "".join(drawings)


def _histogram(counts: Mapping[int, int], record: RunRecord, title: str, ink: str) -> str:
    """Share of steps by their staleness, P-1 marked."""
    width, height, left, others = 420, 150, 34, record.others
    total, base = sum(counts.values()), height - 22
    if not total:
        return ""
    most, mean = max(counts), sum(lag * n for lag, n in counts.items()) / total
    end = min(max(most, others + 1), MOST_BARS)
    shares = [0.0] * (end + 1)
    for lag, n in counts.items():
        shares[min(lag, end)] += n / total
    wide, top = (width - left - 4) / len(shares), max(shares)
    drawn = f'<line x1="{left}" x2="{width}" y1="{base}" y2="{base}" class="line"/>'
    drawn += f'<text x="0" y="22">{top:.0%}</text>'
    for lag, share in enumerate(shares):
        tall, x = (base - 16) * share / top, left + lag * wide
        drawn += (
            f'<rect x="{x + 1:.1f}" y="{base - tall:.1f}" width="{max(wide - 2, 1):.1f}" '
            f'height="{tall:.1f}" style="fill: {ink}"><title>{lag}: {share:.1%} of steps</title>'
            "</rect>"
        )
        if len(shares) < 14 or lag % 4 == 0 or lag == end:
            more = "+" * (most > end and lag == end)
            drawn += (
                f'<text x="{x + wide / 2:.1f}" y="{height - 8}" text-anchor="middle">{lag}{more}'
                "</text>"
            )
    if others <= end:
        x, far = left + (others + 0.5) * wide, others > end / 2
        anchor, beside = ("end", x - 4) if far else ("start", x + 4)
        drawn += (
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{base}" class="mark"/>'
            f'<text x="{beside:.1f}" y="12" text-anchor="{anchor}">P-1 = {others}</text>'
        )
    label = f"{title}: mean {mean:.4g}, largest {format_number(most)}; P-1 is {others}"
    return (
        f'<figure><h3>{title} <small>mean {mean:.4g}</small></h3><svg viewBox="0 0 {width} '
        f'{height}" width="{width}" role="img" aria-label="{label}">{drawn}</svg></figure>'
    )
