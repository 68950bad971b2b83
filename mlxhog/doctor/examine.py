"""Runs all checks, one after the other, into one record."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from mlxhog.base import machine as machines
from mlxhog.base import verdicts
from mlxhog.base.load import LoadWatch
from mlxhog.doctor import backends, kernels
from mlxhog.doctor.checks import (
    CheckResult,
    broken,
    check_facts,
    check_shared_memory,
    collect_facts,
)
from mlxhog.doctor.litmus import PROMISED, Litmus, all_readers, cases
from mlxhog.doctor.pair import PART, check_pair
from mlxhog.report.views import TellStep, numbered

STAGES: Final = 7
ADDS_S: Final = {False: 0.15, True: 0.01}
"""Time for which each pair of writers adds, by `quick`."""
GRADIENTS: Final = {False: 30, True: 4}
"""Gradients that each backend computes for its speed, by `quick`."""


def examine(quick: bool, tell: TellStep) -> dict[str, Any]:
    """Examine this machine and return the record, without a verdict.

    Takes half a minute, and up to two more where both engines of a GPU train. Leaves no process
    and no shared memory behind.

    Args:
        quick: whether to test a little of everything; such a record is not kept.
        tell: called with (part, step).
    """
    tell = numbered(tell, STAGES - quick)
    machine, watch = machines.here(), LoadWatch()
    tell("facts", "")
    facts = collect_facts(machine)
    checks = list(check_facts(machine, facts))
    tell("shared memory", "")
    checks.append(check_shared_memory())
    tell("Metal kernels", "")
    compared: list[dict[str, Any]] = []
    usable = []
    for engine in kernels.engines_of(machine):
        started, rows = kernels.check_engine(engine, lambda step: tell("Metal kernels", step))
        checks.append(started)
        compared += rows
        usable += [engine] if rows else []
    wrong = [row for row in compared if not row["ok"]]
    tell("backends", "")
    agreed = set(usable) - {row["engine"] for row in wrong}
    measured = backends.check_backends(machine, GRADIENTS[quick], agreed)
    checks += measured.checks
    writes, reads = [], []
    litmus = Litmus(ADDS_S[quick])
    try:
        pairs = list(cases(usable))
        for number, case in enumerate(pairs, start=1):
            tell("litmus", f"{number} of {len(pairs)}: {case}")
            writes.append(litmus.run(case))
        for reader in all_readers(machine):
            for mode in PROMISED:
                tell("reads", f"{reader.name}, live, beside {mode} writes")
                reads.append(litmus.read(reader, mode))
    finally:
        litmus.close()
    record: dict[str, Any] = {
        "format": verdicts.FORMAT,
        "identity": asdict(verdicts.identity()),
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
        *(f"kernel {row['name']} {row['instance']} on {row['engine']}" for row in wrong),
    ]
    return record
