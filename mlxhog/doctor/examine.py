"""Runs all checks, one after the other, into one record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from mlxhog.doctor import accessors, frameworks, kernels
from mlxhog.doctor.accessors import Accessor
from mlxhog.doctor.checks import Check, CheckResult, check_facts, check_shared_memory, collect_facts
from mlxhog.doctor.litmus import READ_MODES, Litmus, broken, cases, try_reader
from mlxhog.doctor.pair import PART, check_pair
from mlxhog.doctor.precision import check_precision
from mlxhog.doctor.repeats import check_repeats
from mlxhog.machine import machine as machines
from mlxhog.machine import verdicts
from mlxhog.machine.load import LoadWatch
from mlxhog.machine.machine import Machine
from mlxhog.metal.registry import instances
from mlxhog.report.views import Stages, TellStep

STAGES = (
    "facts", "shared memory", "Metal engines", "kernels", "backends", "precision",
    "memory between frameworks", "litmus", "reads", "batch sizes", "a run", PART,
)  # fmt: skip
LONG = 3
"""The last stages, which a quick examination leaves out."""
QUICK_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Time to spend.

    Attributes:
        seconds: time for which each pair of writers adds.
        quick: whether to test a little of everything; such a record is not kept.
    """

    seconds: float
    quick: bool = False

    @property
    def pair_s(self) -> float:
        """Time of one pair of writers."""
        return min(self.seconds, QUICK_S) if self.quick else self.seconds

    @property
    def gradients(self) -> int:
        """Gradients that each backend computes."""
        return 4 if self.quick else 30


def examine(effort: Effort, tell: TellStep) -> dict[str, Any]:
    """Examine this machine and return the record, without a verdict.

    Takes about a minute, and up to two more where both engines of a GPU train. Leaves no process
    and no shared memory behind.
    """
    tell = Stages(tell, len(STAGES) - LONG * effort.quick)
    machine, watch = machines.here(), LoadWatch()
    facts = collect_facts(machine)
    tell("facts", "")
    checks = list(check_facts(machine, facts))
    tell("shared memory", "")
    checks += check_shared_memory()
    tell("Metal engines", "")
    texts = kernels.check_mlx_text()  # of all kernels at once, cached for emulated engines
    engines = kernels.Engines(accessors.metal_engines(machine))
    try:
        started_engines, usable = engines.start()
        compared = _compared(engines, usable, tell)
    finally:
        engines.close()
    tell("backends", "")
    agreed = _agreed(compared)
    started, speeds = frameworks.check_backends(machine, effort.gradients, agreed=agreed)
    again, repeats = check_repeats(speeds)
    checks += again
    tell("precision", "")
    checks += check_precision(machine, agreed)
    checks += kernels.check_operators(machine, usable)
    tell("memory between frameworks", "")
    imported = frameworks.check_imports(machine, quick=effort.quick)
    rows, read = _litmus(machine, accessors.all_writers(machine, usable), effort, tell)
    checks += [*started_engines, texts]
    batch = pair = None
    if not effort.quick:
        tell("batch sizes", "")
        check_of_batch, batch = frameworks.check_batch()
        checks.append(check_of_batch)
        tell("a run", "")
        checks += frameworks.check_training()
        tell(PART, "")
        both, pair = check_pair(machine, watch, tell)
        checks.append(both)
    record: dict[str, Any] = {
        "format": verdicts.FORMAT,
        "identity": asdict(verdicts.identity()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": asdict(effort),
        "facts": facts,
        "checks": _plain(checks),
        "backends": _plain(started),
        "imports": _plain(imported),
        "litmus": rows,
        "reads": read,
        "kernels": compared,
        "tokens_per_s": speeds.usual,
        "batch_size": batch,
    }
    if machine.apple_gpu:
        record |= {"tokens_per_s_metal": speeds.metal, "repeats": repeats}
    if pair is not None:
        record["pair"] = pair
    everything = (*checks, *started, *imported)
    record["failed"] = [
        *(each.name for each in everything if each.result == CheckResult.FAIL),
        *_broken_rows(rows),
        *_broken_reads(read),
        *(f"kernel {_kernel(row)}" for row in compared if not row["ok"]),
    ]
    return record


def _compared(
    engines: kernels.Engines, usable: Sequence[str], tell: TellStep
) -> list[dict[str, Any]]:
    """Return a row per instance of a kernel and usable engine."""
    tell("kernels", "")
    tests = [(name, *one) for name in usable for one in instances()]
    rows = []
    for number, (name, kernel, instance) in enumerate(tests, start=1):
        words = " ".join(filter(None, (kernel.name, instance, "on", name)))
        tell("kernels", f"{number} of {len(tests)}: {words}")
        rows.append(engines.compare(name, kernel, instance))
    return rows


def _agreed(compared: Sequence[dict[str, Any]]) -> set[str]:
    """Return the engines on which every kernel agreed with its reference."""
    return {row["engine"] for row in compared} - {
        row["engine"] for row in compared if not row["ok"]
    }


def _litmus(
    machine: Machine, writers: list[Accessor], effort: Effort, tell: TellStep
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows of every pair of writers, and of every reader beside the native writer."""
    litmus = Litmus(effort.pair_s)
    try:
        pairs = list(cases(writers))
        rows = []
        for number, case in enumerate(pairs, start=1):
            tell("litmus", f"{number} of {len(pairs)}: {case}")
            rows.append(litmus.run(case))
        tests = [(*one, mode) for one in accessors.all_readers(machine) for mode in READ_MODES]
        read = []
        for number, (kind, reader, mode) in enumerate(tests, start=1):
            words = f"{reader.name}, {kind}, beside {mode} writes"
            tell("reads", f"{number} of {len(tests)}: {words}")
            read.append(try_reader(litmus, kind, reader, writers[0], mode))
        return rows, read
    finally:
        litmus.close()


def _broken_rows(rows: Iterable[dict[str, Any]]) -> list[str]:
    return [
        f"litmus {' + '.join(row['writers'])} {row['kernel']} {row['where']} {row['mode']}"
        for row in rows
        if broken(row)
    ]


def _broken_reads(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the wrong reads that runs rely on: snapshots, and live reads of a CPU."""
    return [
        f"{row['kind']} reads of {row['reader']}"
        for row in rows
        if (row["kind"] == "snapshot" or row["reader"].endswith(":cpu"))
        and (row["torn"] or row["backwards"] or ("error" in row and "untold" not in row))
    ]


def _kernel(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["name"], row["instance"], "on", row["engine"])))


def _plain(checks: Iterable[Check]) -> list[dict[str, Any]]:
    return [asdict(check) for check in checks]
