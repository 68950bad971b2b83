"""The record of doctor: its consequences for runs, and its tables.

`mlxhog.machine.verdicts` writes and reads the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from mlxhog.config.config import DEFAULT_MODEL
from mlxhog.doctor.accessors import KERNELS
from mlxhog.doctor.checks import AGAIN, CheckResult
from mlxhog.doctor.litmus import broken
from mlxhog.errors import EnvironmentLacks
from mlxhog.files.quantities import format_bytes, format_count
from mlxhog.machine.machine import Machine
from mlxhog.machine.verdicts import Verdicts
from mlxhog.machine.workers import BACKENDS, GPU_BACKENDS, missing, resolve_workers
from mlxhog.models.ops import kernels
from mlxhog.report.table import AnswerNote, FailureNote, Section
from mlxhog.training.kernel_choice import doctors_refusal, why_not_metal

TROUBLE = (CheckResult.WARN, CheckResult.FAIL, CheckResult.UNCLEAR)
BUSY = f"unclear on a busy machine ({AGAIN})"
LIVE = ("mlx:gpu", "torch:cpu")
"""Backends that can compute with host memory itself."""


def conclude(verdicts: Verdicts, machine: Machine) -> dict[str, Any]:
    """Return the choices of options that depend on a record.

    Args:
        verdicts: the record, as a run would load it.
        machine: this one.

    Returns:
        The choice and its reason for `--workers auto`, `--gpu-write auto`, `--batch-size auto` of
        the default run and, for each backend, `--kernels auto`; whether each backend may use
        `--read live`, `--gpu-write metal` and `--determinism record`, and why.
    """
    workers, backends = _workers(verdicts, machine)
    here = [name for name in BACKENDS if missing(name, machine) is None]
    return {
        "workers": workers,
        "kernels": {name: _kernels(verdicts, name) for name in here},
        "batch_size": verdicts.record.get("batch_size"),
        "gpu_write": _gpu_write(verdicts, backends),
        "gpu_write_metal": {name: _metal(verdicts, name) for name in here if name in GPU_BACKENDS},
        "record": {name: _record(verdicts, name) for name in here if name in GPU_BACKENDS},
        "read_live": {name: asdict(verdicts.live_read(name)) for name in here if name in LIVE},
    }


def _workers(verdicts: Verdicts, machine: Machine) -> tuple[dict[str, str], list[str]]:
    try:
        chosen = resolve_workers(
            "auto", machine=machine, tokens_per_s=verdicts.tokens_per_s, pair=verdicts.pair()
        )
    except EnvironmentLacks as error:
        return {"auto": "", "why": str(error)}, []
    backends = [worker.backend for worker in chosen.workers]
    speeds = ", ".join(
        f"{name} {format_count(speed)} tok/s" for name, speed in verdicts.tokens_per_s.items()
    )
    why = "; ".join([f"one thread of each: {speeds}" if speeds else "not measured", *chosen.notes])
    return {"auto": ",".join(backends), "why": why}, backends


def _kernels(verdicts: Verdicts, name: str) -> dict[str, str]:
    """Return the choice of `--kernels auto` for workers of a backend, and its reason."""
    framework, device = name.split(":")
    verdict = verdicts.model_kernels(name)
    chosen = kernels.resolve(framework, "auto", device, metal_verified=verdict.ok)
    if name in GPU_BACKENDS:
        return {"auto": chosen, "why": verdict.reason}
    why = "our C++ kernels" if chosen == "native" else "our C++ kernels are not built"
    return {"auto": chosen, "why": why}


def _gpu_write(verdicts: Verdicts, backends: list[str]) -> dict[str, str]:
    """Return the choice of `--gpu-write auto` for the workers of `--workers auto`."""
    refusal = why_not_metal(backends, verdicts)
    if refusal is None:
        return {"auto": "metal", "why": verdicts.gpu_write(backends).reason}
    return {"auto": "cpu", "why": refusal}


def _metal(verdicts: Verdicts, name: str) -> dict[str, Any]:
    """Return whether a single worker of a backend may add its own steps, and the reason."""
    refusal = doctors_refusal([name], verdicts)
    return {"ok": refusal is None, "reason": refusal or verdicts.gpu_write([name]).reason}


def _record(verdicts: Verdicts, name: str) -> dict[str, Any]:
    """Return whether a worker of a GPU may be recorded, and the reason."""
    return asdict(verdicts.repeats(name, _kernels(verdicts, name)["auto"]))


# -- its tables ------------------------------------------------------------------------------------

Row = Mapping[str, Any]
_LEGEND = (
    "lossless: stripe locks; cas: compare-and-swap; both promise to lose no add.",
    "racy: our plain adds; naive: x += g of a framework; neither promises anything.",
    "lossy: such adds were lost; lucky: none this time. Neither is a fault of this machine.",
)


def sections(record: Row, *, everything: bool) -> list[Section]:
    """Return the tables of a record for `mlxhog.report.table.show`.

    Args:
        record: with its verdict.
        everything: whether to return all tables; else the answer, the failures and the choices of
            `mlxhog train`.
    """
    if not everything:
        return [
            Section("", notes=[answer(record)]),
            *_trouble_sections(record),
            _choices_section(record),
        ]
    return [
        Section("", notes=[answer(record)]),
        _heading_section(record),
        _checks_section(record),
        _litmus_section(record["litmus"]),
        _reads_section(record["reads"]),
        _kernels_section(record["kernels"]),
        _verdict_section(record),
    ]


PASTE_LINES, PASTE_WIDTH = 40, 150
TEMPLATE = ".github/ISSUE_TEMPLATE/mac.yml"


def paste(record: Row) -> str:
    """Return a report of at most `PASTE_LINES` lines for an issue."""
    gpu = record["facts"]["apple_gpu"]
    lines = [*_heading_section(record).notes, str(answer(record))]
    lines.append(f"Metal {'on the GPU' if gpu else 'emulated on the CPU'}")
    for engine, group in groupby(record["kernels"], lambda row: row["engine"]):
        rows = list(group)
        wrong = [f"{row['name']} {row['instance']}: {_why(row)}" for row in rows if not row["ok"]]
        lines += [f"kernels {engine}: {len(rows) - len(wrong)} of {len(rows)} agree", *wrong[:3]]
    for mode in dict.fromkeys(row["mode"] for row in record["litmus"]):
        rows = [row for row in record["litmus"] if row["mode"] == mode]
        torn = sum(row["torn"] for row in rows)
        lines.append(f"litmus {mode}: {_lost(rows)} adds lost, {torn} values torn")
    speeds = [f"{name} {format_count(speed)}" for name, speed in record["tokens_per_s"].items()]
    lines.append(f"tokens/s: {', '.join(speeds)}; pair: {record.get('pair')}")
    lines.append(f"--workers auto: {record['verdict']['workers']['auto'] or 'none'}")
    checks = (*record["checks"], *record["backends"], *record["imports"])
    lines += [
        f"{check['result']} {check['name']}: {check['found']}"
        for check in checks
        if check["result"] in TROUBLE or check["name"].startswith("float32 of")
    ]
    room = PASTE_LINES - 2
    if len(lines) > room:
        lines[room - 1 :] = [f"{len(lines) - room + 1} more lines: mlxhog doctor --json"]
    lines += [
        'Paste this into an issue with the template "A Mac\'s report", whatever the result',
        f"({TEMPLATE} of the repository).",
    ]
    return "\n".join(line[:PASTE_WIDTH].replace("\n", " ") for line in lines)


def answer(record: Row) -> str:
    """Return a line that says whether all promises hold."""
    failed, tried = record["failed"], len(_tried(record))
    if failed:
        return FailureNote(f"FAILED: {len(failed)} of {tried} checks fail here.")
    if untold := [row for row in _tried(record) if _untold(row)]:
        return FailureNote(f"{len(untold)} of {tried} checks are {BUSY}; the others pass here.")
    if not record["verdict"]["workers"]["auto"]:
        return FailureNote(f"No worker can run here: {record['verdict']['workers']['why']}")
    return AnswerNote("Every promise holds here; `mlxhog train` needs no options.")


def _untold(row: Row) -> bool:
    """Whether a row has no result, because the machine was busy."""
    return row.get("result") == CheckResult.UNCLEAR or "untold" in row


def _tried(record: Row) -> list[Any]:
    parts = ("checks", "backends", "imports", "litmus", "reads", "kernels")
    return [row for name in parts for row in record[name]]


def _trouble_sections(record: Row) -> Iterator[Section]:
    """Yield a table of the failures and warnings, if there are any."""
    checks = (*record["checks"], *record["backends"], *record["imports"])
    rows = _check_rows(check for check in checks if check["result"] in TROUBLE)
    notes = [FailureNote(f"FAILED: {name}") for name in record["failed"]]
    if rows or notes:
        yield Section("", ("", "what", "found") if rows else (), rows, notes)


def _choices_section(record: Row) -> Section:
    """Return the choices of runs here."""
    verdict = record["verdict"]
    rows = [
        ("--workers auto", verdict["workers"]["auto"] or "none"),
        *((f"--kernels auto, {name}", each["auto"]) for name, each in verdict["kernels"].items()),
        ("--gpu-write auto", verdict["gpu_write"]["auto"]),
        *(row[:2] for row in _batch_rows(verdict)),
    ]
    notes = [*_about_record(record), f"--all shows all {len(_tried(record))} checks."]
    return Section("", ("option", "here"), rows, notes)


def _heading_section(record: Row) -> Section:
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


def _checks_section(record: Row) -> Section:
    checks = (*record["checks"], *record["backends"], *record["imports"])
    return Section("checks", ("", "what", "found"), _check_rows(checks))


def _check_rows(checks: Iterable[Row]) -> list[tuple[str, str, str]]:
    rows = []
    for check in checks:
        rows.append((check["result"], check["name"], check["found"]))
        if check["result"] in TROUBLE:
            rows.append(("", "", f"expected: {check['expected']}; {check['consequence']}"))
    return rows


def _litmus_section(rows: Sequence[Row]) -> Section:
    """Return one line per pair and mode, of threads and processes; the JSON has all rows."""

    def key(row: Row) -> tuple[tuple[str, ...], str]:
        return tuple(row["writers"]), row["mode"]

    lines = []
    for (writers, mode), group in groupby(rows, key):
        trials = list(group)
        cells = [_lost([row for row in trials if row["kernel"] == kernel]) for kernel in KERNELS]
        fastest = max(row["adds_per_s"] for row in trials)
        result = "FAIL" if any(map(broken, trials)) else _fact(trials)
        lines.append((result, _pair(writers), mode, *cells, format_count(fastest)))
    torn = sum(row["torn"] for row in rows)
    return Section(
        "litmus: adds lost by two writers at once, in threads and in processes",
        ("", "writers", "how", *KERNELS, "adds/s"),
        lines,
        [
            f"torn values: {torn}",
            *_LEGEND,
            *(f"{_error(row)}  ({_pair(row['writers'])})" for row in rows if "error" in row),
        ],
    )


def _error(row: Row) -> str:
    return f"{row['untold']}: {row['error']}" if "untold" in row else str(row["error"])


def _pair(writers: Sequence[str]) -> str:
    a, b = writers
    return f"{a} twice" if a == b else f"{a} + {b}"


def _fact(trials: Sequence[Row]) -> str:
    """Return the result of some rows; lost adds are no failure without a promise."""
    promised = trials[0]["mode"] not in ("racy", "naive")
    if any(map(_untold, trials)):
        return str(CheckResult.UNCLEAR)
    if not any(row["lost"] or row["torn"] or "error" in row for row in trials):
        return "PASS" if promised else "lucky"
    return "WARN" if promised else "lossy"


def _lost(rows: Sequence[Row]) -> str:
    if not rows:
        return "-"
    adds, lost = (sum(row[name] for row in rows) for name in ("adds", "lost"))
    return f"{format_count(lost)} of {format_count(adds)}"


def _reads_section(rows: Sequence[Row]) -> Section:
    lines = []
    for row in rows:
        good = not (row["torn"] or row["backwards"] or "error" in row)
        lines.append(
            (
                str(CheckResult.UNCLEAR) if _untold(row) else "PASS" if good else "FAIL",
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
        [f"{_error(row)}  ({row['reader']} {row['kind']})" for row in rows if "error" in row],
    )


def _kernels_section(rows: Sequence[Row]) -> Section:
    lines = []
    for engine, group in groupby(rows, lambda row: row["engine"]):
        trials = list(group)
        wrong = [row for row in trials if not row["ok"]]
        ran = [row for row in trials if row["ran"]]
        worst = max((row["max_error"] for row in ran), default=0.0)
        lines.append(
            (
                "FAIL" if wrong else "PASS",
                engine,
                f"{len(trials) - len(wrong)} of {len(trials)} agree",
                f"largest error {worst:.2g}",
            )
        )
        lines += [("FAIL", engine, f"{row['name']} {row['instance']}", _why(row)) for row in wrong]
    return Section(
        "Metal kernels against their references",
        ("", "engine", "kernels", ""),
        lines,
        [] if rows else ["no kernel ran: no Metal engine works here, see the checks"],
    )


def _why(row: Row) -> str:
    if "error" in row:
        return str(row["error"])
    return f"error {row['max_error']:.3g}, allowed {row['tolerance']:.3g}"


def _verdict_section(record: Row) -> Section:
    verdict = record["verdict"]
    rows = [
        ("--workers auto", verdict["workers"]["auto"] or "none", verdict["workers"]["why"]),
        *(
            (f"--kernels auto, {name}", each["auto"], each["why"])
            for name, each in verdict["kernels"].items()
        ),
        ("--gpu-write auto", verdict["gpu_write"]["auto"], verdict["gpu_write"]["why"]),
        *_batch_rows(verdict),
        *(
            (f"--gpu-write metal, {name}", _may(each), each["reason"])
            for name, each in verdict["gpu_write_metal"].items()
        ),
        *(
            (f"--determinism record, {name}", _may(each), each["reason"])
            for name, each in verdict["record"].items()
        ),
        ("--read snapshot", "yes", "the default: a private copy for every step"),
        *(
            (f"--read live, {name}", _may(each), each["reason"])
            for name, each in verdict["read_live"].items()
        ),
    ]
    notes = [FailureNote(f"FAILED: {name}") for name in record["failed"]]
    return Section("verdict", ("option", "here", "why"), rows, [*notes, *_about_record(record)])


def _batch_rows(verdict: Row) -> list[tuple[str, str, str]]:
    """The row of the default run's batch, if it was measured."""
    batch = verdict.get("batch_size")
    if batch is None:
        return []
    return [(f"--batch-size auto, {DEFAULT_MODEL}", str(batch["sequences"]), batch["why"])]


def _about_record(record: Row) -> Iterator[str]:
    path = record["stored"]
    yield f"stored in {path}" if path else str(record["not_stored"])
    if not record["facts"]["apple_gpu"]:
        yield "No Apple GPU: Metal rows are emulated and prove nothing about a Mac's GPU."


def _may(verdict: Row) -> str:
    return "yes" if verdict["ok"] else "no"
