"""`mlxhog doctor`: tests this machine."""

import sys
from dataclasses import dataclass
from typing import Any

from mlxhog.cli.flags import Flags
from mlxhog.cli.output import print_json, print_sections
from mlxhog.config.options import option
from mlxhog.errors import EnvironmentLacks

ABOUT = """\
Test what mlxhog relies on here: shared memory, a gradient of every backend beside the reference,
every pair of writers at once, readers beside a writer; on a Mac every Metal kernel, and whether
torch:mps beside mlx:gpu makes runs faster. This takes half a minute, on a Mac up to three. The
answer comes first; --all shows every table. The result is stored for this machine and these
versions; --workers, --gpu-write, --read and --determinism of `mlxhog train` use it. A check that
other programs leave too little processor time is unclear, which is no failure. Exit code 1 if a
promise of mlxhog does not hold here."""
EXAMPLES = (
    "doctor",
    "doctor --all",
    "doctor --json > doctor.json",
    "doctor --paste",
    "doctor --seconds 2",
    "doctor --quick",
)


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Options of `mlxhog doctor`."""

    seconds: float = option(
        0.15, "time for which each pair of writers adds", unit="s", above=0, high=60
    )


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("doctor", ABOUT, EXAMPLES)
    flags.argument("--all", action="store_true", help="show all tables")
    flags.argument("--json", action="store_true", help="one JSON object with every number")
    flags.argument("--paste", action="store_true", help="40 lines for an issue, such as of a Mac")
    flags.argument(
        "--quick", action="store_true", help="a little of everything; the result is not stored"
    )
    flags.quiet()
    parsed, config = flags.read(DoctorConfig, arguments)
    # These import NumPy and the native module; wrong input is refused before.
    from mlxhog.doctor.examine import examine
    from mlxhog.report.views import PartLine

    with PartLine(sys.stderr, quiet=parsed.other.quiet) as tell:
        record = examine(config.seconds, parsed.other.quick, tell)
    _conclude(record, keep=not parsed.other.quick)
    if parsed.other.json:
        print_json(record)
    elif parsed.other.paste:
        from mlxhog.doctor.record import paste

        print(paste(record))
    elif not parsed.other.quiet:
        from mlxhog.doctor.record import sections

        parts = sections(record, everything=parsed.other.all)
        print_sections(parts)
    elif record["failed"]:
        print(f"FAILED: {', '.join(record['failed'])}", file=sys.stderr)
    return 1 if record["failed"] else 0


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
