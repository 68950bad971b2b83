"""`mlxhog mad table`: one table of the rows that several people made with `mlxhog mad bench`."""

from __future__ import annotations

from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.cli.mad.board import TableConfig, show

ABOUT = """\
Merge rows of results into one table: files with the JSON of mad bench. All are of one suite, one
protocol and this version of mlxhog; another one, or an edited one, is refused by name. Below the
table stands the command that repeats each candidate on a CPU."""
EXAMPLES = (
    "mad table mine.json theirs.json",
    "mad table rows/*.json --markdown table.md",
)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad table", ABOUT, EXAMPLES, ("ROW.json ...",))
    flags.argument("rows", metavar="ROW.json", nargs="+", help="files of mad bench --json")
    flags.argument("--json", action="store_true", help="one JSON object")
    parsed, config = flags.read(TableConfig, arguments)
    from mlxhog.mad.report.leaderboard import lines
    from mlxhog.mad.report.results_row import merged
    from mlxhog.report.streams import printable

    ranking = merged([Path(name) for name in parsed.other.rows])
    if not show(ranking, config, as_json=parsed.other.json):
        print(f"rows of {ranking.study}: suite {ranking.suite}")
        print("\n".join(lines(ranking)[1:]))
        print("\n".join(printable(f"{place} {command}") for place, command in ranking.facts))
    return 0
