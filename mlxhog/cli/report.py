"""Write one HTML file about one run or several: curves, workers, samples.

The file needs no network. A run in progress is reported up to its last number.

Examples:
    report latest
    report runs/20260102-101500-sotu runs/20260102-111500-sotu --output compared.html
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.cli.frame import CommandResult, Json, RunsDirectory, command, option, run_argument
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.display.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class ReportOptions(RunsDirectory, Json):
    """Options of a command that writes one file about runs."""

    runs: tuple[str, ...] = run_argument("RUN...")
    output: str | None = option(
        None, "file to write; in the run's folder, or here for several", none="auto",
        is_path=True,
    )  # fmt: skip

    def records(self) -> "list[RunRecord]":
        """Return the records of the runs, each once."""
        from mlxhog.display.record import RunRecord

        records = [RunRecord(self.find(name)) for name in self.runs]
        return list({each.run.directory.resolve(): each for each in records}.values())

    def write(self, records: "Sequence[RunRecord]", name: str, content: bytes) -> str:
        """Write the file, by default in the folder of the run; return its path."""
        from mlxhog.base.durable import disk_errors, replace_file

        default = Path(name) if len(records) > 1 else records[0].run.directory / name
        path = default if self.output is None else Path(self.output)
        with disk_errors(f"writing {path}"):
            replace_file(path, content)
        return str(path)


def suffix_of(path: str, known: Sequence[str]) -> str:
    """Return the format of a file by its suffix; ConfigError if it is none of the known ones."""
    suffix = Path(path).suffix
    if suffix[1:].lower() not in known:
        raise ConfigError(
            f"--output {path}: the suffix is {suffix or 'missing'}, expected one of "
            f"{', '.join(f'.{one}' for one in known)}"
        )
    return suffix[1:].lower()


@command(writes=True)
def run(config: ReportOptions) -> CommandResult:
    from mlxhog.display.run_page import report

    suffix_of(config.output or "report.html", ("html", "htm"))
    records = config.records()
    page = report(records).encode()
    path = config.write(records, "report.html", page)
    notes = [note for each in records for note in each.notes]
    return CommandResult({"report": path, "bytes": len(page), "notes": notes})
