"""The record of doctor: its consequences for runs, and its tables.

`mlxhog.base.verdicts` writes and reads the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from mlxhog.base.machine import Machine
from mlxhog.base.quantities import format_bytes, format_count
from mlxhog.base.verdicts import Verdicts
from mlxhog.base.workers import BACKENDS, GPU_BACKENDS, missing, resolve_workers
from mlxhog.doctor.checks import AGAIN, CheckResult, broken
from mlxhog.doctor.litmus import KERNELS, LIVE, PROMISED
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.ops import kernels
from mlxhog.report.table import AnswerNote, FailureNote, Section
from mlxhog.training.kernel_choice import doctors_refusal, why_not_metal

TROUBLE = (CheckResult.WARN, CheckResult.FAIL, CheckResult.UNCLEAR)
BUSY = f"unclear on a busy machine ({AGAIN})"


def conclude(verdicts: Verdicts, machine: Machine) -> dict[str, Any]:
    """Return the choices of options that depend on a record.

    Args:
        verdicts: the record, as a run would load it.
        machine: this one.

    Returns:
        The choice and its reason for `--workers auto`, `--gpu-write auto` and, for each backend,
        `--kernels auto`; whether each backend may use `--read live`, `--gpu-write metal` and
        `--determinism record`, and why.
    """
    speeds, backends = verdicts.tokens_per_s, list[str]()
    try:
        team = resolve_workers("auto", machine=machine, tokens_per_s=speeds, pair=verdicts.pair())
    except EnvironmentLacks as error:
        workers = {"auto": "", "why": str(error)}
    else:
        backends = [worker.backend for worker in team.workers]
        measured = ", ".join(f"{name} {format_count(one)} tok/s" for name, one in speeds.items())
        why = f"one thread of each: {measured}" if speeds else "not measured"
        workers = {"auto": ",".join(backends), "why": "; ".join([why, *team.notes])}
    here = [name for name in BACKENDS if missing(name, machine) is None]
    forms = {name: _kernels(verdicts, name) for name in here}
    metal, record = {}, {}
    for name in here:
        if name in GPU_BACKENDS:
            no = doctors_refusal([name], verdicts)
            metal[name] = {"ok": no is None, "reason": no or verdicts.gpu_write([name]).reason}
            record[name] = asdict(verdicts.repeats(name, forms[name]["auto"]))
    no = why_not_metal(backends, verdicts)
    return {
        "workers": workers,
        "kernels": forms,
        "gpu_write": {
            "auto": "metal" if no is None else "cpu",
            "why": no or verdicts.gpu_write(backends).reason,
        },
        "gpu_write_metal": metal,
        "record": record,
        "read_live": {name: asdict(verdicts.live_read(name)) for name in here if name in LIVE},
    }


def _kernels(verdicts: Verdicts, name: str) -> dict[str, str]:
    """Return the choice of `--kernels auto` for workers of a backend, and its reason."""
    framework, device = name.split(":")
    verdict = verdicts.model_kernels(name)
    chosen = kernels.resolve(framework, "auto", device, metal_verified=verdict.ok)
    native = "our C++ kernels" if chosen == "native" else "our C++ kernels are not built"
    return {"auto": chosen, "why": verdict.reason if name in GPU_BACKENDS else native}


# -- its tables ------------------------------------------------------------------------------------

Row = Mapping[str, Any]
PASTE_LINES, PASTE_WIDTH = 40, 150
TEMPLATE = ".github/ISSUE_TEMPLATE/mac.yml"
_LEGEND = (
    "lossless: stripe locks; cas: compare-and-swap; both promise to lose no add.",
    "racy: plain adds, which promise nothing. lossy: some were lost; lucky: none this time.",
)


def sections(record: Row, *, everything: bool) -> list[Section]:
    """Return the tables of a record for `mlxhog.report.table.show`.

    Args:
        record: with its verdict.
        everything: whether to return all tables; else the answer, the failures and the choices of
            `mlxhog train`.
    """
    failures = [FailureNote(f"FAILED: {name}") for name in record["failed"]]
    path = record["stored"]
    about = [f"stored in {path}" if path else str(record["not_stored"])]
    verdict, header = list(_verdict_rows(record["verdict"])), ("", "what", "found")
    if not everything:
        troubles = _check_rows(one for one in record["checks"] if one["result"] in TROUBLE)
        choices = [row[:2] for row in verdict if " auto" in row[0]]
        about.append(f"--all shows all {len(_tried(record))} checks.")
        tables = [
            Section("", header if troubles else (), troubles, failures),
            Section("", ("option", "here"), choices, about),
        ]
        tables = tables if troubles or failures else tables[1:]
    else:
        of_kernels = list(_kernel_rows(record["kernels"]))
        title = "Metal kernels against plain operations"
        tables = [
            Section("", notes=_heading(record)),
            Section("checks", header, _check_rows(record["checks"])),
            _litmus_section(record["litmus"]),
            _reads_section(record["reads"]),
            *([Section(title, ("", "engine", "kernels", ""), of_kernels)] if of_kernels else []),
            Section("verdict", ("option", "here", "why"), verdict, [*failures, *about]),
        ]
    return [Section("", notes=[answer(record)]), *tables]


def paste(record: Row) -> str:
    """Return a report of at most `PASTE_LINES` lines for an issue."""
    lines = [*_heading(record), str(answer(record))]
    for cells in _kernel_rows(record["kernels"]):
        lines.append(" ".join(cells))
    for mode in dict.fromkeys(row["mode"] for row in record["litmus"]):
        rows = [row for row in record["litmus"] if row["mode"] == mode]
        torn = sum(row["torn"] for row in rows)
        lines.append(f"litmus {mode}: {_lost(rows)} adds lost, {torn} values torn")
    lines += [
        f"{row['result']} {row['name']}: {row['found']}"
        for row in record["checks"]
        if row["result"] in TROUBLE or row["name"].startswith("backend ")
    ]
    lines.append(f"pair: {record.get('pair')}")
    lines += [f"{option}: {choice}" for option, choice, _ in _verdict_rows(record["verdict"])]
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
    failed, tried = record["failed"], _tried(record)
    if failed:
        return FailureNote(f"FAILED: {len(failed)} of {len(tried)} checks fail here.")
    if untold := [row for row in tried if _untold(row)]:
        return FailureNote(
            f"{len(untold)} of {len(tried)} checks are {BUSY}; the others pass here."
        )
    if not record["verdict"]["workers"]["auto"]:
        return FailureNote(f"No worker can run here: {record['verdict']['workers']['why']}")
    return AnswerNote("Every promise holds here; `mlxhog train` needs no options.")


def _tried(record: Row) -> list[Any]:
    return [row for name in ("checks", "litmus", "reads", "kernels") for row in record[name]]


def _untold(row: Row) -> bool:
    """Whether a row has no result, because the machine was busy."""
    return row.get("result") == CheckResult.UNCLEAR or "untold" in row


def _heading(record: Row) -> list[str]:
    facts = record["facts"]
    versions = facts["versions"]
    cores = f"{facts['cores']} cores"
    if facts["efficiency_cores"] is not None:
        cores = f"{facts['cores']} + {facts['efficiency_cores']} cores"
    machine = [facts["system"], facts["architecture"], facts["chip"], cores]
    parts = [*filter(None, machine), format_bytes(facts["memory_bytes"])]
    software = [f"{name} {versions[name]}" for name in ("mlxhog", "mlx", "torch", "numpy")]
    return ["  ".join(parts), "  ".join([*software, f"python {facts['python']}"])]


def _check_rows(checks: Iterable[Row]) -> list[tuple[str, str, str]]:
    rows = []
    for check in checks:
        rows.append((check["result"], check["name"], check["found"]))
        if check["result"] in TROUBLE:
            rows.append(("", "", f"expected: {check['expected']}; {check['consequence']}"))
    return rows


def _litmus_section(rows: Sequence[Row]) -> Section:
    """Return one line per pair and mode, of threads and processes; the JSON has all rows."""
    lines = []
    for (writers, mode), group in groupby(rows, lambda row: (_pair(row), row["mode"])):
        trials = list(group)
        bad = any(row["lost"] or row["torn"] or "error" in row for row in trials)
        result = ("WARN" if bad else "PASS") if mode in PROMISED else "lossy" if bad else "lucky"
        if any(map(broken, trials)):
            result = "FAIL"
        elif any(map(_untold, trials)):
            result = "unclear"
        cells = [_lost([row for row in trials if row["kernel"] == kernel]) for kernel in KERNELS]
        fastest = format_count(max(row["adds_per_s"] for row in trials))
        lines.append((result, writers, mode, *cells, fastest))
    return Section(
        "litmus: adds lost by two writers at once, in threads and in processes",
        ("", "writers", "how", *KERNELS, "adds/s"),
        lines,
        [f"torn values: {sum(row['torn'] for row in rows)}", *_LEGEND, *_errors(rows, _pair)],
    )


def _errors(rows: Sequence[Row], name: Callable[[Row], str]) -> list[str]:
    lines = []
    for row in rows:
        if "error" in row:
            untold = f"{row['untold']}: " if "untold" in row else ""
            lines.append(f"{untold}{row['error']}  ({name(row)})")
    return lines


def _pair(row: Row) -> str:
    a, b = row["writers"]
    return f"{a} twice" if a == b else f"{a} + {b}"


def _lost(rows: Sequence[Row]) -> str:
    adds, lost = (sum(row[name] for row in rows) for name in ("adds", "lost"))
    return f"{format_count(lost)} of {format_count(adds)}"


def _reads_section(rows: Sequence[Row]) -> Section:
    lines = []
    for row in rows:
        bad = row["torn"] or row["backwards"] or "error" in row
        lines.append(
            (
                "unclear" if _untold(row) else "FAIL" if bad else "PASS",
                _reader(row),
                row["mode"],
                format_count(row["samples"]),
                str(row["torn"]),
                str(row["backwards"]),
                f"{row['visible_s'] * 1e3:.2f} ms",
            )
        )
    header = ("", "reader", "writer", "values", "torn", "fell", "seen after")
    title = "reads while another process writes"
    return Section(title, header, lines, _errors(rows, _reader))


def _reader(row: Row) -> str:
    return f"{row['reader']} {row['kind']}"


def _kernel_rows(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a line per Metal engine, and one per kernel that differs."""
    for engine, group in groupby(rows, lambda row: row["engine"]):
        trials = list(group)
        wrong = [row for row in trials if not row["ok"]]
        worst = max((row["max_error"] or 0.0 for row in trials), default=0.0)
        agree = f"{len(trials) - len(wrong)} of {len(trials)} agree"
        yield "FAIL" if wrong else "PASS", engine, agree, f"largest error {worst:.2g}"
        for row in wrong:
            why = f"error {row['max_error']}, allowed {row['tolerance']:.3g}"
            yield "FAIL", engine, f"{row['name']} {row['instance']}", row.get("error", why)


def _verdict_rows(verdict: Row) -> Iterator[tuple[str, str, str]]:
    """Yield each option, its choice or whether it may be used, and the reason."""
    yield "--workers auto", verdict["workers"]["auto"] or "none", verdict["workers"]["why"]
    for name, each in verdict["kernels"].items():
        yield f"--kernels auto, {name}", each["auto"], each["why"]
    yield "--gpu-write auto", verdict["gpu_write"]["auto"], verdict["gpu_write"]["why"]
    for option, key in (
        ("--gpu-write metal", "gpu_write_metal"),
        ("--determinism record", "record"),
        ("--read live", "read_live"),
    ):
        for name, each in verdict[key].items():
            yield f"{option}, {name}", "yes" if each["ok"] else "no", each["reason"]
