"""`mlxhog report`: one HTML file about one run or several."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.base.quantities import format_bytes
from mlxhog.cli.flags import RUN_HELP, Flags, RunFolder
from mlxhog.config.options import option
from mlxhog.errors import RunError

if TYPE_CHECKING:
    from mlxhog.report.record import RunRecord

ABOUT = """\
Write one HTML file about one run, or about several beside each other: result, machine, curves over
time, samples and updates, staleness, workers over time, samples of text, what failed and recovered,
configuration, and the commands that repeat it. The file needs no network. A run in progress is
reported up to its last number."""
EXAMPLES = (
    "report latest",
    "report latest --to page.html",
    "report runs/20260102-101500-sotu runs/20260102-111500-sotu --to compared.html",
)
NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportConfig(RunFolder):
    """Options of `mlxhog report`."""

    to: str | None = option(
        None, f"file to write; {NAME} in the run's folder, or here for several", none="auto"
    )


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("report", ABOUT, EXAMPLES, ("RUN...",))
    flags.argument("runs", metavar="RUN", nargs="+", help=RUN_HELP)
    flags.argument("--json", action="store_true", help="end with one line of JSON")
    parsed, config = flags.read(ReportConfig, arguments)
    from mlxhog.base.durable import disk_errors, replace_file
    from mlxhog.checkpoint.run import find
    from mlxhog.report.record import RunRecord
    from mlxhog.report.run_page import report

    runs = [find(spec, Path(config.out)) for spec in parsed.other.runs]
    if len({each.directory.resolve() for each in runs}) < len(runs):
        raise RunError("a run is named twice; name each run once")
    records = [RunRecord(each) for each in runs]
    text = report(records).encode()
    path = Path(config.to) if config.to else _default(records)
    with disk_errors(f"writing {path}"):
        replace_file(path, text)
    if parsed.other.json:
        written = {"report": str(path), "bytes": len(text)}
        print(json.dumps({**written, "notes": [n for each in records for n in each.notes]}))
        return 0
    for record in records:
        for note in record.notes:
            print(f"{record.run.name}: {note}")
    print(f"{path}  {format_bytes(len(text))}")
    return 0


def _default(records: "Sequence[RunRecord]") -> Path:
    return records[0].run.directory / NAME if len(records) == 1 else Path(NAME)
