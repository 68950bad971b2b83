"""`mlxhog mad table`: one table of the rows that several people made with `mlxhog mad bench`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.cli.mad.board import write
from mlxhog.config.options import option

ABOUT = """\
Merge rows of results into one table: files with the JSON of mad bench. All are of one suite, one
protocol and this version of mlxhog; another one, or an edited one, is refused by name. Below the
table stands the command that repeats each candidate on a CPU."""
EXAMPLES = (
    "mad table mine.json theirs.json",
    "mad table rows/*.json --markdown table.md",
)


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Options of `mlxhog mad table`."""

    csv: str | None = option(None, "write a table with every number to this file; - is stdout")
    markdown: str | None = option(None, "write a Markdown table to this file; - is stdout")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad table", ABOUT, EXAMPLES, ("ROW.json ...",))
    flags.argument("rows", metavar="ROW.json", nargs="+", help="files of mad bench --json")
    flags.argument("--json", action="store_true", help="one JSON object")
    parsed, config = flags.read(TableConfig, arguments)
    from mlxhog.mad.report.leaderboard import lines, to_csv, to_json, to_markdown
    from mlxhog.mad.report.results_row import merged
    from mlxhog.report.streams import printable

    ranking = merged([Path(name) for name in parsed.other.rows])
    if parsed.other.json:
        print(json.dumps(to_json(ranking)))
    for path, text in ((config.csv, to_csv), (config.markdown, to_markdown)):
        if path is not None:
            write(path, text(ranking))
    if not (parsed.other.json or config.csv or config.markdown):
        print(f"rows of {ranking.study}: suite {ranking.suite}")
        print("\n".join(lines(ranking)[1:]))
        print("\n".join(printable(f"{place} {command}") for place, command in ranking.facts))
    return 0
