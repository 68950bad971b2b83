"""Everything doctor looks at, one after the other, into one record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from mlxhog.doctor import backends, facts, imports, kernels, kinds, memory, reads, training, wrapper
from mlxhog.doctor.checks import Check, Result
from mlxhog.doctor.litmus import Litmus, broken, cases
from mlxhog.doctor.writers import Kind
from mlxhog.machine import machine as machines
from mlxhog.machine import verdicts
from mlxhog.machine.machine import Machine

Tell = Callable[[str, str], None]
"""Told what is being looked at: the part, and the step in it."""
QUICK_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to look.

    Attributes:
        seconds: time for which each pair of writers adds.
        quick: little of everything; such a record is not worth keeping.
    """

    seconds: float
    quick: bool = False

    @property
    def pair_s(self) -> float:
        """Time of one pair of writers."""
        return min(self.seconds, QUICK_S) if self.quick else self.seconds

    @property
    def backend_s(self) -> float:
        """Time for which a backend computes gradients."""
        return 0.1 if self.quick else 1.0


def examine(effort: Effort, tell: Tell) -> dict[str, Any]:
    """Look at this machine and return the record, without a verdict.

    Takes about a minute. Nothing is left behind: no process, no shared memory.
    """
    machine = machines.here()
    found_facts = facts.collect(machine)
    tell("facts", "")
    checks = list(facts.examine(machine, found_facts))
    tell("shared memory", "")
    checks += memory.examine()
    tell("Metal engines", "")
    engines = kernels.Engines(kinds.engines(machine))
    try:
        started_engines, usable = engines.start()
        compared = _compared(engines, usable, tell)
    finally:
        engines.close()
    tell("backends", "")
    agreed = _agreed(compared)
    started, speeds = backends.examine(machine, effort.backend_s, agreed=agreed)
    tell("memory between frameworks", "")
    imported = imports.examine(machine, quick=effort.quick)
    rows, read = _litmus(machine, kinds.writers(machine, usable), effort, tell)
    checks += [*started_engines, wrapper.examine()]
    if not effort.quick:
        tell("a run", "")
        checks += training.examine()
    record: dict[str, Any] = {
        "format": verdicts.FORMAT,
        "identity": asdict(verdicts.identity()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": asdict(effort),
        "facts": found_facts,
        "checks": _plain(checks),
        "backends": _plain(started),
        "imports": _plain(imported),
        "litmus": rows,
        "reads": read,
        "kernels": compared,
        "tokens_per_s": speeds.usual,
    }
    if machine.apple_gpu:
        record["tokens_per_s_metal"] = speeds.metal
    everything = (*checks, *started, *imported)
    record["failed"] = [
        *(each.name for each in everything if each.result == Result.FAIL),
        *_broken_rows(rows),
        *_broken_reads(read),
        *(f"kernel {_kernel(row)}" for row in compared if not row["ok"]),
    ]
    return record


def _compared(engines: kernels.Engines, usable: Sequence[str], tell: Tell) -> list[dict[str, Any]]:
    """Every kernel in every instance, on every engine that could be started."""
    rows = []
    for name in usable:
        for kernel, instance in kernels.instances():
            tell("kernels", " ".join(filter(None, (kernel.name, instance, "on", name))))
            rows.append(engines.compare(name, kernel, instance))
    return rows


def _agreed(compared: Sequence[dict[str, Any]]) -> set[str]:
    """Engines on which no kernel differed from its reference."""
    return {row["engine"] for row in compared} - {
        row["engine"] for row in compared if not row["ok"]
    }


def _litmus(
    machine: Machine, writers: list[Kind], effort: Effort, tell: Tell
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every pair of writers, then every reader beside the native writer."""
    litmus = Litmus(effort.pair_s)
    try:
        wanted = list(cases(writers))
        rows = []
        for number, case in enumerate(wanted, start=1):
            tell("litmus", f"{number} of {len(wanted)}: {case}")
            rows.append(litmus.run(case))
        read = []
        for kind, reader in kinds.readers(machine):
            for mode in reads.MODES:
                tell("reads", f"{reader.name}, {kind}, beside {mode} writes")
                read.append(reads.try_reader(litmus, kind, reader, writers[0], mode))
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
    """Reads that every run relies on: snapshots, and live reads of a CPU."""
    return [
        f"{row['kind']} reads of {row['reader']}"
        for row in rows
        if (row["kind"] == "snapshot" or row["reader"].endswith(":cpu"))
        and (row["torn"] or row["backwards"] or "error" in row)
    ]


def _kernel(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["name"], row["instance"], "on", row["engine"])))


def _plain(checks: Iterable[Check]) -> list[dict[str, Any]]:
    return [check.to_json() for check in checks]
