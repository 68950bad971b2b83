"""`mlxhog doctor`: tests this machine."""

import sys
from dataclasses import dataclass
from typing import Any

from mlxhog.cli.flags import Quiet
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option, switch
from mlxhog.errors import EnvironmentLacks
from mlxhog.report.views import StatusLine

ABOUT = """\
Test what mlxhog relies on here: shared memory, a gradient of every backend beside the reference,
every pair of writers at once, readers beside a writer; on a Mac every Metal kernel, and whether
torch:mps beside mlx:gpu makes runs faster. This takes half a minute, on a Mac up to three. The
answer comes first; --json has every number. The result is stored for this machine and these
versions; --workers, --gpu-write, --read and --determinism of `mlxhog train` use it. A check that
other programs leave too little processor time is unclear, which is no failure. Exit code 1 if a
promise of mlxhog does not hold here."""
EXAMPLES = (
    "doctor",
    "doctor --json > doctor.json",
    "doctor --seconds 2",
    "doctor --quick",
)


@dataclass(frozen=True, kw_only=True)
class _DoctorConfig(Quiet):
    quick: bool = switch("a little of everything; the result is not stored")
    seconds: float = option(
        0.15, "time for which each pair of writers adds", unit="s", above=0, high=60
    )


@command("doctor", ABOUT, EXAMPLES, _DoctorConfig)
def run(config: _DoctorConfig) -> Report:
    """Test this machine, and store the result."""
    # These import NumPy and the native module; wrong input is refused before.
    from mlxhog.doctor.examine import examine
    from mlxhog.doctor.record import sections

    with StatusLine(sys.stderr, quiet=config.quiet) as tell:
        record = examine(config.seconds, config.quick, tell)
    _conclude(record, keep=not config.quick)
    failed = record["failed"]

    short = config.quiet and failed and not config.json
    remarks = [f"FAILED: {', '.join(failed)}"] if short else []
    return Report(record, text=lambda: sections(record), code=int(bool(failed)), remarks=remarks)


def _conclude(record: dict[str, Any], *, keep: bool) -> None:
    """Store the record, then read it as a run would, and add its consequences."""
    from mlxhog.base import machine, verdicts
    from mlxhog.doctor.record import conclude

    identity = verdicts.Identity(**record["identity"])
    record["stored"], record["not_stored"] = None, "--quick is not stored; run `mlxhog doctor`"
    if keep:
        try:
            record["stored"] = str(verdicts.save(record, identity))
            record["not_stored"] = None
        except EnvironmentLacks as error:
            record["not_stored"] = str(error)
    known = verdicts.load()
    if not known.usable:
        known = verdicts.Verdicts(known.path, None, record)
    record["verdict"] = conclude(known, machine.here())
