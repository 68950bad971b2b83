"""`mlxhog doctor`: tests this machine."""

from dataclasses import dataclass

from mlxhog.cli.flags import Quiet
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option, switch
from mlxhog.errors import EnvironmentLacks


@dataclass(frozen=True, kw_only=True)
class _Words(Quiet):
    quick: bool = switch("a little of everything; the result is not stored")
    seconds: float = option(
        0.15, "time for which each pair of writers adds", unit="s", above=0, high=60
    )


@command("doctor")
def run(config: _Words) -> Report:
    """Test what mlxhog relies on here.

    That is shared memory, a gradient of every backend beside the reference, every pair of writers
    at once, readers beside a writer; on a Mac every Metal kernel, and whether torch:mps beside
    mlx:gpu makes runs faster. This takes half a minute, on a Mac up to three. The answer comes
    first; --json has every number. The result is stored for this machine and these versions;
    --workers, --gpu-write, --read and --determinism of `mlxhog train` use it. A check that other
    programs leave too little processor time is unclear, which is no failure. Exit code 1 if a
    promise of mlxhog does not hold here.

    Examples:
        doctor
        doctor --json > doctor.json
        doctor --seconds 2
        doctor --quick
    """
    # These import NumPy and the native module; wrong input is refused before.
    from mlxhog.base import machine, verdicts
    from mlxhog.doctor.examine import examine
    from mlxhog.doctor.record import conclude, sections

    with config.status() as tell:
        record = examine(config.seconds, config.quick, tell)
    record["stored"], record["not_stored"] = None, "--quick is not stored; run `mlxhog doctor`"
    if not config.quick:
        try:
            path = verdicts.save(record, verdicts.Identity(**record["identity"]))
            record["stored"], record["not_stored"] = str(path), None
        except EnvironmentLacks as error:
            record["not_stored"] = str(error)
    known = verdicts.load()  # as a run would
    if not known.usable:
        known = verdicts.Verdicts(known.path, None, record)
    record["verdict"] = conclude(known, machine.here())
    failed = record["failed"]
    short = config.quiet and failed and not config.json
    remarks = [f"FAILED: {', '.join(failed)}"] if short else []
    return Report(record, sections(record), int(bool(failed)), remarks)
