"""`mlxhog report`: one HTML file about one run or several."""

from dataclasses import dataclass
from pathlib import Path

from mlxhog.base.quantities import format_bytes
from mlxhog.cli.flags import RunFolder, run_argument
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option, switch
from mlxhog.errors import RunError

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

    runs: tuple[str, ...] = run_argument("RUN...")
    json: bool = switch("end with one line of JSON")
    to: str | None = option(
        None, f"file to write; {NAME} in the run's folder, or here for several", none="auto"
    )


@command("report", ABOUT, EXAMPLES, ReportConfig)
def run(config: ReportConfig) -> Report:
    """Write a page about runs."""
    from mlxhog.base.durable import disk_errors, replace_file
    from mlxhog.checkpoint.run import find
    from mlxhog.report.record import RunRecord
    from mlxhog.report.run_page import report

    records = [RunRecord(find(spec, Path(config.out))) for spec in config.runs]
    if len({each.run.directory.resolve() for each in records}) < len(records):
        raise RunError("a run is named twice; name each run once")
    page = report(records).encode()
    default = Path(NAME) if len(records) > 1 else records[0].run.directory / NAME
    path = Path(config.to) if config.to else default
    with disk_errors(f"writing {path}"):
        replace_file(path, page)
    notes = [(each.run.name, note) for each in records for note in each.notes]
    facts = {"report": str(path), "bytes": len(page), "notes": [note for _, note in notes]}
    lines = [*(f"{name}: {note}" for name, note in notes), f"{path}  {format_bytes(len(page))}"]
    return Report(facts, lambda: "\n".join(lines))
