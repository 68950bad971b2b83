"""Make the capability record, the values of options that follow from it, and its tables.

`mlxhog.base.capabilities` writes and reads the file.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from mlxhog.base import capabilities
from mlxhog.base import machine as machines
from mlxhog.base.capabilities import GPU_ENGINES, CapabilityRecord, CellTimes
from mlxhog.base.load import LoadWatch
from mlxhog.base.machine import Machine
from mlxhog.base.quantities import format_count
from mlxhog.base.workers import BACKENDS, GPU_BACKENDS, missing, resolve_workers
from mlxhog.display.table import AnswerNote, FailureNote, Section
from mlxhog.display.views import TellStep
from mlxhog.doctor import backends
from mlxhog.doctor import kernels as metal
from mlxhog.doctor.checks import (
    AGAIN,
    CheckResult,
    broken,
    check_facts,
    check_shared_memory,
    collect_facts,
)
from mlxhog.doctor.litmus import LIVE, LOSSLESS, Litmus, all_readers, cases
from mlxhog.doctor.pair import PART, check_pair
from mlxhog.errors import EnvironmentLacks, one_line
from mlxhog.models.cells import cells
from mlxhog.models.families import ModelConfig
from mlxhog.models.ops import kernels
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan.kernel_choice import doctors_refusal, why_not_metal

TROUBLE = (CheckResult.WARN, CheckResult.FAIL, CheckResult.INCONCLUSIVE)
STAGES: Final = 7
TIMES: Final = ("eager_s", "metal_s")
ADDS_S: Final = {False: 0.15, True: 0.01}  # duration of a litmus case, by `quick`
GRADIENTS: Final = {False: 30, True: 4}
"""Gradients computed to measure a backend's speed, by `quick`."""


def examine(quick: bool, tell: TellStep, model: ModelConfig | None = None) -> dict[str, Any]:
    """Examine this machine and return the record, without the values of options.

    The cells of `model` are measured, or those of `backends.CELL_MODELS` unless `quick`.

    Takes half a minute, and up to two more where both engines of a GPU train. Leaves no process
    and no shared memory behind. Calls `tell` with the names of `STAGES` parts, one less if `quick`.
    """
    machine, watch = machines.here(), LoadWatch()
    tell("facts", "")
    facts = collect_facts(machine)
    checks = list(check_facts(machine, facts))
    tell("shared memory", "")
    checks.append(check_shared_memory())
    tell("Metal kernels", "")
    compared, usable = list[dict[str, Any]](), list[str]()
    here = (engine for name, engine in GPU_ENGINES.items() if missing(name, machine) is None)
    for engine in here:
        started, rows = metal.check_engine(engine, lambda step: tell("Metal kernels", step))
        checks.append(started)
        compared += rows
        usable += [engine] if rows else []
    wrong = [row for row in compared if not row["ok"]]
    tell("backends", "")
    agreed = set(usable) - {row["engine"] for row in wrong}
    of_presets = map(load_architecture, () if quick else backends.CELL_MODELS)
    models = of_presets if model is None else [model]
    to_measure = dict.fromkeys(cell for one in models for cell in cells(one))
    measured = backends.check_backends(machine, GRADIENTS[quick], agreed, to_measure)
    checks += measured.checks
    writes, reads = [], []
    with closing(Litmus(ADDS_S[quick])) as litmus:
        pairs = list(cases(usable))
        for number, case in enumerate(pairs, start=1):
            tell("litmus", f"{number} of {len(pairs)}: {case}")
            writes.append(litmus.run(case))
        for reader in all_readers(machine):
            for mode in LOSSLESS:
                tell("reads", f"{reader.name}, live, beside {mode} writes")
                reads.append(litmus.read(reader, mode))
    record: dict[str, Any] = {
        "format": capabilities.FORMAT,
        "identity": asdict(capabilities.identity()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": {"seconds": ADDS_S[quick], "quick": quick},
        "facts": facts,
        "litmus": writes,
        "reads": reads,
        "kernels": compared,
        "tokens_per_s": measured.tokens_per_s,
    }
    if machine.apple_gpu:
        record |= {"tokens_per_s_metal": measured.metal, "repeats": measured.repeats}
        record |= {"decoding": measured.decoding}
        record |= {"cells": [one.row() for one in measured.cells]}
    if not quick:
        tell(PART, "")
        both, pair = check_pair(machine, watch, tell)
        checks.append(both)
        record |= {"pair": pair} if pair is not None else {}
    record["checks"] = [asdict(each) for each in checks]
    record["failed"] = [
        *(each.name for each in checks if each.result == CheckResult.FAIL),
        *(
            f"litmus {' + '.join(row['writers'])} {row['kernel']} {row['mode']}"
            for row in writes
            if broken(row)
        ),
        *(f"live reads of {row['reader']}" for row in reads if broken(row)),
        *(f"kernel {row['name']} on {row['engine']}" for row in wrong if "inconclusive" not in row),
    ]
    return record


def option_values(known: CapabilityRecord, machine: Machine) -> dict[str, Any]:
    """Return the values of options that depend on a record, each with its reason.

    They are `--workers auto`, `--gpu-write auto` and, for each backend, `--kernels auto`; and
    whether each backend may use `--read live`, `--gpu-write metal` and `--determinism record`.
    """
    speeds, team = known.tokens_per_s, list[str]()
    try:
        choice = resolve_workers("auto", machine=machine, tokens_per_s=speeds, pair=known.pair())
    except EnvironmentLacks as error:
        workers = {"auto": "", "why": str(error)}
    else:
        team = [worker.backend for worker in choice.workers]
        measured = ", ".join(f"{name} {format_count(one)} tok/s" for name, one in speeds.items())
        why = f"one thread of each: {measured}" if speeds else "not measured"
        workers = {"auto": ",".join(team), "why": "; ".join([why, *choice.notes])}
    here = [name for name in BACKENDS if missing(name, machine) is None]
    on_gpu = [name for name in here if name in GPU_BACKENDS]
    forms = {name: _kernels(known, name) for name in here}

    def permitted(no: str | None, names: Sequence[str]) -> tuple[bool, str]:
        return no is None, no or known.gpu_write(names).reason

    is_metal, why = permitted(why_not_metal(team, known), team)
    of_metal = {name: permitted(doctors_refusal([name], known), [name]) for name in on_gpu}
    return {
        "workers": workers,
        "kernels": forms,
        "gpu_write": {"auto": "metal" if is_metal else "cpu", "why": why},
        "gpu_write_metal": {n: {"ok": ok, "reason": why} for n, (ok, why) in of_metal.items()},
        "record": {n: asdict(known.repeats(n, forms[n]["auto"])) for n in on_gpu},
        "read_live": {name: asdict(known.live_read(name)) for name in here if name in LIVE},
    }


def _kernels(known: CapabilityRecord, name: str) -> dict[str, str]:
    framework, device = name.split(":")
    use_metal = known.model_kernels(name)
    chosen = kernels.resolve(framework, "auto", device, metal_verified=use_metal.ok)
    native = "our C++ kernels" if chosen == "native" else "our C++ kernels are not built"
    return {"auto": chosen, "why": use_metal.reason if name in GPU_BACKENDS else native}


Row = Mapping[str, Any]


def sections(record: Row) -> list[Section]:
    """Return tables: the result, what is not as expected, and options of `mlxhog train`."""
    troubles = list[tuple[str, str, str]]()
    for one in record["checks"]:
        if one["result"] in TROUBLE:
            troubles.append((one["result"], one["name"], one_line(one["found"])))
            troubles.append(("", "", f"expected: {one['expected']}; {one['consequence']}"))
    for row in (*record["litmus"], *record["reads"]):
        if "error" in row:
            name = row.get("reader") or " + ".join(row["writers"])
            result = "inconclusive" if "inconclusive" in row else "FAIL"
            troubles.append((result, name, one_line(row["error"])))
    for row in record["kernels"]:
        if not row["ok"]:
            why = row.get("error", f"error {row['max_error']}, allowed {row['tolerance']:.3g}")
            result = "inconclusive" if "inconclusive" in row else "FAIL"
            troubles.append((result, f"{row['engine']}, {row['name']}", one_line(why)))
    options, tried = record["options"], _tried(record)
    choices = [
        ("--workers auto", options["workers"]["auto"] or "none"),
        *((f"--kernels auto, {name}", one["auto"]) for name, one in options["kernels"].items()),
        ("--gpu-write auto", options["gpu_write"]["auto"]),
    ]
    stored = f"stored in {record['stored']}" if record["stored"] else str(record["not_stored"])
    about = [stored, f"--json has all {len(tried)} checks, with their numbers."]
    wheels = (f"{name} {' '.join(tags)}" for name, tags in record["facts"]["wheels"].items())
    about += [f"wheels: {', '.join(wheels)}"]
    if "report" in record:
        about.append(f"{record['report']} has all of this for an issue, and no text of yours")
    failures = [FailureNote(f"FAILED: {name}") for name in record["failed"]]
    trouble = Section("", ("", "what", "found") if troubles else (), troubles, failures)
    cells = [
        (
            row["backend"],
            str(CellTimes.of(row).cell),
            *(f"{1e3 * row[key]:.3g} ms" for key in TIMES),
        )
        for row in record.get("cells", ())
    ]
    return [
        Section("", notes=[_answer(record, tried)]),
        *([trouble] if troubles or failures else []),
        *([Section("", ("GPU", "cell", "eager", "Metal"), cells)] if cells else []),
        Section("", ("option", "here"), choices, about),
    ]


def _answer(record: Row, tried: list[Row]) -> str:
    failed, workers = record["failed"], record["options"]["workers"]
    if failed:
        return FailureNote(f"FAILED: {len(failed)} of {len(tried)} checks fail here.")
    if n := sum(CheckResult.INCONCLUSIVE in (row.get("result"), *row) for row in tried):
        return FailureNote(
            f"{n} of {len(tried)} checks are inconclusive on a busy machine ({AGAIN}); the others "
            "passed."
        )
    if not workers["auto"]:
        return FailureNote(f"No worker can run here: {workers['why']}")
    return AnswerNote("All checks passed; `mlxhog train` needs no options.")


def _tried(record: Row) -> list[Row]:
    return [row for name in ("checks", "litmus", "reads", "kernels") for row in record[name]]
