"""The record of doctor: its consequences for runs, and its tables.

`mlxhog.base.verdicts` writes and reads the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from mlxhog.base.machine import Machine
from mlxhog.base.quantities import format_bytes, format_count
from mlxhog.base.verdicts import Verdicts
from mlxhog.base.workers import BACKENDS, GPU_BACKENDS, missing, resolve_workers
from mlxhog.doctor.checks import AGAIN, CheckResult
from mlxhog.doctor.litmus import LIVE
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


def sections(record: Row) -> list[Section]:
    """Return the answer, what is not as expected, and the choices of `mlxhog train`, as tables.

    Args:
        record: with its verdict.
    """
    failures = [FailureNote(f"FAILED: {name}") for name in record["failed"]]
    troubles = list[tuple[str, str, str]]()
    for one in record["checks"]:
        if one["result"] in TROUBLE:
            troubles.append((one["result"], one["name"], one["found"]))
            troubles.append(("", "", f"expected: {one['expected']}; {one['consequence']}"))
    for row in (*record["litmus"], *record["reads"]):
        if "error" in row:
            name = row.get("reader") or " + ".join(row["writers"])
            troubles.append(("unclear" if "untold" in row else "FAIL", name, row["error"]))
    for result, engine, kernel, why in _kernel_rows(record["kernels"]):
        if result == "FAIL":
            troubles.append((result, f"{engine}, {kernel}", why))
    choices = [(option, choice) for option, choice, _ in _verdict_rows(record["verdict"])]
    choices = [row for row in choices if " auto" in row[0]]
    stored = f"stored in {record['stored']}" if record["stored"] else str(record["not_stored"])
    about = [stored, f"--json has all {len(_tried(record))} checks, with their numbers."]
    trouble = Section("", ("", "what", "found") if troubles else (), troubles, failures)
    return [
        Section("", notes=[answer(record)]),
        *([trouble] if troubles or failures else []),
        Section("", ("option", "here"), choices, about),
    ]


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


def _lost(rows: Sequence[Row]) -> str:
    adds, lost = (sum(row[name] for row in rows) for name in ("adds", "lost"))
    return f"{format_count(lost)} of {format_count(adds)}"


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
