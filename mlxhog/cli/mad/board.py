"""`mlxhog mad board`: the leaderboard of a study, while it runs and afterwards."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlxhog.cli.flags import Flags
from mlxhog.config.options import option
from mlxhog.config.sources import resolve
from mlxhog.errors import ConfigError
from mlxhog.files.durable import replace_file

if TYPE_CHECKING:
    from mlxhog.mad.report.standing import Standing

ABOUT = """\
The leaderboard of a study, from its directory alone: while it runs, and after it.
Scores are in [0, 1]: the mean over the tasks, +- the 95 % interval over seeds. Candidates that lack
runs come last, and the last line says so."""
EXAMPLES = (
    "mad board first",
    "mad board studies/first --watch",
    "mad board first --json",
    "mad board first --csv first.csv --markdown first.md",
    "mad board shared --against unshared",
)
LOOK_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class BoardConfig:
    """Options of `mlxhog mad board`."""

    csv: str | None = option(None, "write a table with every number to this file; - is stdout")
    markdown: str | None = option(None, "write a table for people to this file; - is stdout")
    select: str | None = option(
        None,
        "rows whose accuracy chooses between optimiser points; none: as the study says",
        choices=("test", "val"),
    )
    against: str | None = option(None, "another study: the rank correlation of both orders")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad board", ABOUT, EXAMPLES, ("STUDY",))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.argument("--json", action="store_true", help="one JSON object")
    flags.argument("--watch", action="store_true", help="again and again until the study stops")
    flags.options(BoardConfig)
    parsed = flags.parse(arguments)
    config = resolve(BoardConfig, [parsed.given], parsed.problems)
    if parsed.other.watch and (config.csv or config.markdown):
        raise ConfigError("--watch goes with the table and --json; write files without it")
    from mlxhog.mad.report.look import look
    from mlxhog.mad.study.store import find

    store = find(parsed.other.study)
    other = None if config.against is None else find(config.against)

    def now() -> Standing:
        return look(store, select=config.select, against=other)  # type: ignore[arg-type]

    if parsed.other.watch:
        _watch(now, as_json=parsed.other.json)
        return 0
    standing = now()
    if parsed.other.json:
        print(_json(standing))
    if config.csv or config.markdown:
        from mlxhog.mad.report.leaderboard import to_csv, to_markdown

        for path, text in ((config.csv, to_csv), (config.markdown, to_markdown)):
            if path is not None:
                _write(path, text(standing))
    elif not parsed.other.json:
        print("\n".join(_lines(standing, sys.stdout)))
    return 0


def _json(standing: Standing) -> str:
    from mlxhog.mad.report.leaderboard import to_json

    return json.dumps(to_json(standing))


def _lines(standing: Standing, stream: TextIO) -> list[str]:
    from mlxhog.mad.report.lines import lines

    width = shutil.get_terminal_size().columns if stream.isatty() else None
    return lines(standing, width)


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="")
        return
    try:
        replace_file(Path(path), text.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    print(path)


def _watch(now: Callable[[], Standing], *, as_json: bool) -> None:
    """Show a study until its scheduler is gone, or Ctrl-C; in a pipe, whenever a run has ended."""
    try:
        if sys.stdout.isatty() and not as_json:
            _watch_live(now)
            return
        ended = -1
        while True:
            standing = now()
            if len(standing.records) != ended or not standing.running:
                text = (
                    _json(standing) if as_json else "\n".join([*_lines(standing, sys.stdout), ""])
                )
                print(text, flush=True)
            ended = len(standing.records)
            if not standing.running:
                return
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        return  # that is how one stops watching


def _watch_live(now: Callable[[], Standing]) -> None:
    from rich.live import Live  # 50 ms that a command in a pipe need not pay

    from mlxhog.mad.report.picture import Leaderboard
    from mlxhog.report.streams import console

    with Live(console=console(sys.stdout), auto_refresh=False) as live:
        while True:
            standing = now()
            live.update(Leaderboard(standing), refresh=True)
            if not standing.running:
                return
            time.sleep(LOOK_EVERY_S)
