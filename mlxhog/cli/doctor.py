"""Check this machine: backends, concurrent writers, every Metal kernel.

It tests shared memory, a gradient of every backend against the reference, every pair of writers at
once, and readers beside a writer; on a Mac also every Metal kernel, the times of cells, and whether
torch:mps beside mlx:gpu makes runs faster. This takes half a minute, on a Mac up to four. The
result is stored for this machine and these versions, and `mlxhog train` uses it. A check that other
programs leave too little processor time is inconclusive, not a failure. Exit code 1 if a promise of
mlxhog does not hold here.

Examples:
    doctor
    doctor --json > doctor.json
    doctor --quick
    doctor --model 160m
    doctor --report mac.zip
"""

from dataclasses import dataclass
from typing import Any

from mlxhog.cli.frame import CommandResult, Quiet, command, option
from mlxhog.errors import EnvironmentLacks


@dataclass(frozen=True, kw_only=True)
class _Doctor(Quiet):
    quick: bool = option(False, "a little of everything; the result is not stored")
    model: str | None = option(
        None,
        "architecture whose cells are measured on a GPU, eager and by Metal kernels, since "
        "--kernels auto takes the faster ones; default: those of several presets",
    )
    report: str | None = option(
        None,
        "also measure speeds, train by default for 20 s, and write all results and logs to a zip "
        "archive, for an issue",
        metavar="FILE",
    )


@command()
def run(config: _Doctor) -> CommandResult:
    # These import NumPy and the native module; wrong input is refused before.
    from mlxhog.base import machine
    from mlxhog.display.views import numbered
    from mlxhog.doctor import report
    from mlxhog.doctor.record import STAGES, examine, sections
    from mlxhog.models.registry import load_architecture

    target = None if config.report is None else report.target(config.report)
    here, model = machine.here(), None if config.model is None else load_architecture(config.model)
    if model is not None and not here.apple_gpu:
        raise EnvironmentLacks(
            f"--model {config.model}: its cells are measured on an Apple GPU, and this is "
            f"{here.name}; leave --model out"
        )
    with config.status() as status:
        progress = numbered(status, STAGES - config.quick + report.STAGES * bool(target))
        try:
            record = examine(config.quick, progress, model)
        except Exception:
            if target:  # a report is of use just then
                report.write(target, report.of_fault(config.quick), here, progress)
                status.tell(f"{target} has this error and what else is known")
            raise
        record |= _consequences(record, quick=config.quick)
        if target:
            report.write(target, record, here, progress)
    failed = record["failed"]
    short = config.quiet and failed and not config.json
    messages = [f"FAILED: {', '.join(failed)}"] if short else []
    return CommandResult(record, sections(record), int(bool(failed)), messages)


def _consequences(record: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    """Store a record, and return where it is and what follows for runs."""
    from mlxhog.base import capabilities as verdicts
    from mlxhog.base import machine
    from mlxhog.doctor.record import option_values

    stored, not_stored = None, "--quick is not stored; run `mlxhog doctor`"
    if not quick:
        try:
            stored = str(verdicts.save(record, verdicts.Identity(**record["identity"])))
            verdicts.save_cells(map(verdicts.CellTimes.of, record.get("cells", ())))
        except EnvironmentLacks as error:
            not_stored = str(error)
    known = verdicts.load()  # as a run would
    if not known.usable:
        known = verdicts.CapabilityRecord(known.path, None, record)
    options = option_values(known, machine.here())
    return {"stored": stored, "not_stored": None if stored else not_stored, "options": options}
