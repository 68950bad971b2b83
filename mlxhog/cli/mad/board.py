"""`mlxhog mad board`, `compare` and `plot`: the leaderboard of a study, two rows, its plots."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mlxhog.base.durable import replace_file
from mlxhog.cli.flags import Flags
from mlxhog.config.options import option
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.mad.report.ranking import Ranking

BOARD_ABOUT = """\
The leaderboard of a study, from its directory only, during the study and after it.
Scores are in [0, 1]: the mean over the tasks, +- the 95 % interval over seeds. Incomplete
candidates are last; the last line counts them."""
BOARD_EXAMPLES = (
    "mad board first",
    "mad board studies/first --watch",
    "mad board first --json",
)
LOOK_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Options of all commands."""

    select: str | None = option(
        None,
        "rows whose accuracy selects between optimiser points; none: those of the study",
        choices=("test", "val"),
    )


def run_board(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad board", BOARD_ABOUT, BOARD_EXAMPLES, ("STUDY",))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object")
    flags.argument("--watch", action="store_true", help="repeat it until the study stops")
    parsed, config = flags.read(SelectConfig, arguments)
    from mlxhog.mad.report.ranking import read_ranking
    from mlxhog.mad.study.store import find

    store = find(parsed.other.study)

    def now() -> Ranking:
        return read_ranking(store, select=config.select)  # type: ignore[arg-type]

    if parsed.other.watch:
        _watch(now, as_json=parsed.other.json)
        return 0
    print(_text(now(), as_json=parsed.other.json))
    return 0


def _text(ranking: Ranking, *, as_json: bool) -> str:
    from mlxhog.mad.report.leaderboard import lines, to_json

    if as_json:
        return json.dumps(to_json(ranking))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return "\n".join(lines(ranking, width))


def _watch(now: Callable[[], Ranking], *, as_json: bool) -> None:
    """Show a study until its scheduler ends, or Ctrl-C; in a pipe, after every run that ended."""
    try:
        if sys.stdout.isatty() and not as_json:
            _watch_live(now)
            return
        ended = -1
        while True:
            ranking = now()
            if len(ranking.records) != ended or not ranking.running:
                print(_text(ranking, as_json=as_json), flush=True)
            ended = len(ranking.records)
            if not ranking.running:
                return
            time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        return  # the usual end


def _watch_live(now: Callable[[], Ranking]) -> None:
    from rich.live import Live  # 50 ms, only on a terminal
    from rich.text import Text

    from mlxhog.report.streams import console

    with Live(console=console(sys.stdout), auto_refresh=False) as live:
        while True:
            ranking = now()
            live.update(Text(_text(ranking, as_json=False)), refresh=True)
            if not ranking.running:
                return
            time.sleep(LOOK_EVERY_S)


COMPARE_ABOUT = """\
Compare two candidates of a study, run by run: same task, same setting, same seed. Prints the mean
difference with its 95 % interval and the p-value of the paired t-test, for each task and for the
score; an interval that holds 0 is no answer: cannot be told.
A and B are places on the board, such as 1 and 3, or layers."""
COMPARE_EXAMPLES = (
    "mad compare first 1 2",
    'mad compare first "mlstm swiglu mlstm swiglu" "gla swiglu gla swiglu" --json',
)


def run_compare(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad compare", COMPARE_ABOUT, COMPARE_EXAMPLES, ("STUDY", "A", "B"))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.argument("a", metavar="A", help="a place on the board, or layers")
    flags.argument("b", metavar="B", help="the other one")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object")
    parsed, config = flags.read(SelectConfig, arguments)
    from mlxhog.mad.report.comparison import candidate_of, compare, lines, to_json
    from mlxhog.mad.report.ranking import read_ranking
    from mlxhog.mad.study.store import find

    ranking = read_ranking(find(parsed.other.study), select=config.select)  # type: ignore[arg-type]
    a, b = (candidate_of(ranking, text) for text in (parsed.other.a, parsed.other.b))
    comparison = compare(a, b)
    print(json.dumps(to_json(comparison)) if parsed.other.json else "\n".join(lines(comparison)))
    return 0


PLOT_ABOUT = """\
Write the plots of a study as PNG files, and one HTML page with all of them and the leaderboard. The
page needs no network, has a light and a dark theme, and can be printed.
Learning curves per task; score against parameters, state and time with the Pareto front; seeds with
their intervals. The study may be running."""
PLOT_EXAMPLES = (
    "mad plot first",
    "mad plot first --out figures --open no",
    "mad plot first --json",
)
PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class StudyPlotConfig(SelectConfig):
    """Options of `mlxhog mad plot`."""

    out: str | None = option(None, "folder for the files; none: plots/ in the study's")
    open: str = option(
        "auto", "show the page in a browser, if there is a screen", choices=("auto", "no")
    )


def run_plot(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad plot", PLOT_ABOUT, PLOT_EXAMPLES, ("STUDY",))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.plugin()
    flags.argument("--json", action="store_true", help="one JSON object: page, and plots by name")
    parsed, config = flags.read(StudyPlotConfig, arguments)
    from mlxhog.mad.report.page import page
    from mlxhog.mad.report.plots import plots
    from mlxhog.mad.report.ranking import read_ranking
    from mlxhog.mad.study.store import find
    from mlxhog.report import charts

    store = find(parsed.other.study)
    charts.require("the leaderboard needs nothing: mlxhog mad board")
    ranking = read_ranking(store, select=config.select, curves=True)  # type: ignore[arg-type]
    folder = store.directory / "plots" if config.out is None else Path(config.out)
    _make(folder)
    drawn = list(plots(ranking))
    written = {}
    for plot in drawn:
        written[plot.name] = folder / f"{plot.name}.png"
        replace_file(written[plot.name], plot.png(charts.LIGHT))
    replace_file(folder / PAGE, page(ranking, drawn, version=version("mlxhog")).encode())
    if parsed.other.json:
        files = {name: str(path) for name, path in written.items()}
        print(json.dumps({"page": str(folder / PAGE), "plots": files, "partial": ranking.lacking}))
    else:
        print(*written.values(), folder / PAGE, sep="\n")
        if ranking.lacking:
            print(ranking.lacking)
    if config.open == "auto" and not parsed.other.json:
        _open_page(folder / PAGE)
    return 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create {folder}: {error.strerror}; choose another --out"
        ) from error


def _open_page(page: Path) -> None:
    """Open the page in a browser, if the command runs in a terminal on a machine with a screen."""
    screen = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if sys.stdout.isatty() and screen:
        webbrowser.open(page.absolute().as_uri())
