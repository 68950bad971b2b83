"""A record of doctor as people read it, in sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from mlxhog.config.quantities import format_bytes, format_count
from mlxhog.doctor.litmus import broken
from mlxhog.report.table import Failure, Section

Row = Mapping[str, Any]
_KERNELS = ("dense", "rows", "half")
_LEGEND = (
    "lossless: stripe locks; cas: compare-and-swap; both promise to lose nothing.",
    "racy: plain adds of ours; naive: x += g of a framework; neither promises anything.",
    "lossy: such adds were lost; lucky: none this time. Neither is a fault of this machine.",
)


def sections(record: Row) -> list[Section]:
    """Arrange a record, verdict included."""
    return [
        _heading(record),
        _checks(record),
        _litmus(record["litmus"]),
        _reads(record["reads"]),
        _kernels(record["kernels"]),
        _verdict(record),
    ]


def _heading(record: Row) -> Section:
    facts = record["facts"]
    versions = facts["versions"]
    cores = f"{facts['cores']} cores"
    if facts["efficiency_cores"] is not None:
        cores = f"{facts['cores']} + {facts['efficiency_cores']} cores"
    machine = [facts["system"], facts["architecture"], facts["chip"], cores]
    parts = [*filter(None, machine), format_bytes(facts["memory_bytes"])]
    software = [f"{name} {versions[name]}" for name in ("mlxhog", "mlx", "torch", "numpy")]
    return Section(
        "", notes=["  ".join(parts), "  ".join([*software, f"python {facts['python']}"])]
    )


def _checks(record: Row) -> Section:
    rows = []
    for check in (*record["checks"], *record["backends"], *record["imports"]):
        rows.append((check["result"], check["name"], check["found"]))
        if check["result"] in ("WARN", "FAIL"):
            rows.append(("", "", f"expected: {check['expected']}; {check['consequence']}"))
    return Section("checks", ("", "what", "found"), rows)


def _litmus(rows: Sequence[Row]) -> Section:
    """One line per pair and mode; threads and processes together, all rows are in the JSON."""

    def key(row: Row) -> tuple[tuple[str, ...], str]:
        return tuple(row["writers"]), row["mode"]

    lines = []
    for (writers, mode), group in groupby(rows, key):
        tried = list(group)
        cells = [_lost([row for row in tried if row["kernel"] == kernel]) for kernel in _KERNELS]
        fastest = max(row["adds_per_s"] for row in tried)
        result = "FAIL" if any(map(broken, tried)) else _fact(tried)
        lines.append((result, _pair(writers), mode, *cells, format_count(fastest)))
    torn = sum(row["torn"] for row in rows)
    return Section(
        "litmus: adds lost by two writers at once, in threads and in processes",
        ("", "writers", "how", *_KERNELS, "adds/s"),
        lines,
        [
            f"torn values: {torn}",
            *_LEGEND,
            *(f"{row['error']}  ({_pair(row['writers'])})" for row in rows if "error" in row),
        ],
    )


def _pair(writers: Sequence[str]) -> str:
    a, b = writers
    return f"{a} twice" if a == b else f"{a} + {b}"


def _fact(tried: Sequence[Row]) -> str:
    """Adds that are lost where nobody promised to keep them are no failure."""
    promised = tried[0]["mode"] not in ("racy", "naive")
    if not any(row["lost"] or row["torn"] or "error" in row for row in tried):
        return "PASS" if promised else "lucky"
    return "WARN" if promised else "lossy"


def _lost(rows: Sequence[Row]) -> str:
    if not rows:
        return "-"
    adds, lost = (sum(row[name] for row in rows) for name in ("adds", "lost"))
    return f"{format_count(lost)} of {format_count(adds)}"


def _reads(rows: Sequence[Row]) -> Section:
    lines = []
    for row in rows:
        good = not (row["torn"] or row["backwards"] or "error" in row)
        lines.append(
            (
                "PASS" if good else "FAIL",
                f"{row['reader']} {row['kind']}",
                row["mode"],
                format_count(row["samples"]),
                str(row["torn"]),
                str(row["backwards"]),
                f"{row['visible_s'] * 1e3:.2f} ms",
            )
        )
    return Section(
        "reads while another process writes",
        ("", "reader", "writer", "values", "torn", "fell", "seen after"),
        lines,
        [f"{row['error']}  ({row['reader']} {row['kind']})" for row in rows if "error" in row],
    )


def _kernels(rows: Sequence[Row]) -> Section:
    lines = []
    for engine, group in groupby(rows, lambda row: row["engine"]):
        tried = list(group)
        wrong = [row for row in tried if not row["ok"]]
        ran = [row for row in tried if row["ran"]]
        worst = max((row["max_error"] for row in ran), default=0.0)
        lines.append(
            (
                "FAIL" if wrong else "PASS",
                engine,
                f"{len(tried) - len(wrong)} of {len(tried)} agree",
                f"largest error {worst:.2g}",
            )
        )
        lines += [("FAIL", engine, f"{row['name']} {row['instance']}", _why(row)) for row in wrong]
    return Section(
        "Metal kernels against their references",
        ("", "engine", "kernels", ""),
        lines,
        [] if rows else ["none ran: no Metal engine works here, see the checks"],
    )


def _why(row: Row) -> str:
    if "error" in row:
        return str(row["error"])
    return f"error {row['max_error']:.3g}, allowed {row['tolerance']:.3g}"


def _verdict(record: Row) -> Section:
    verdict = record["verdict"]
    rows = [
        ("--workers auto", verdict["workers"]["auto"] or "none", verdict["workers"]["why"]),
        *(
            (f"--kernels auto, {name}", each["auto"], each["why"])
            for name, each in verdict["kernels"].items()
        ),
        ("--gpu-write auto", verdict["gpu_write"]["auto"], verdict["gpu_write"]["why"]),
        *(
            (f"--gpu-write metal, {name}", _may(each), each["reason"])
            for name, each in verdict["gpu_write_metal"].items()
        ),
        ("--read snapshot", "yes", "the default; a private copy for every step"),
        *(
            (f"--read live, {name}", _may(each), each["reason"])
            for name, each in verdict["read_live"].items()
        ),
    ]
    notes: list[str] = [Failure(f"FAILED: {name}") for name in record["failed"]]
    if not notes:
        notes.append("Every promise tried holds here; `mlxhog train` needs no options.")
    kept = record["stored"]
    notes.append(f"kept in {kept}" if kept else str(record["not_stored"]))
    if not record["facts"]["apple_gpu"]:
        notes.append("No Apple GPU: Metal rows are emulated, and say nothing about a Mac's GPU.")
    return Section("verdict", ("option", "", "why"), rows, notes)


def _may(verdict: Row) -> str:
    return "yes" if verdict["ok"] else "no"
