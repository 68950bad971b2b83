"""`mlxhog mad board`, `compare` and `plot`: the leaderboard of a study, two rows, its plots."""

from __future__ import annotations

import os
import shutil
import sys
import time
import webbrowser
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.durable import replace_file
from mlxhog.cli.flags import Json, Plugins, study_argument
from mlxhog.cli.frame import Report, command, new_folder, print_json
from mlxhog.config.options import argument, option, switch
from mlxhog.report.streams import console

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
class SelectConfig(Plugins, Json):
    """Options of all commands."""

    study: str = study_argument()
    select: str | None = option(
        None,
        "rows whose accuracy selects between optimiser points; none: those of the study",
        choices=("test", "val"),
    )


@dataclass(frozen=True, kw_only=True)
class LeaderboardConfig(SelectConfig):
    """Options of `mlxhog mad board`."""

    watch: bool = switch("repeat it until the study stops")


@command("mad board", BOARD_ABOUT, BOARD_EXAMPLES, LeaderboardConfig)
def board(config: LeaderboardConfig) -> int | Report:
    """Show the leaderboard, once or until the study stops."""
    from mlxhog.mad.report.leaderboard import to_json

    if config.watch:
        _watch(config)
        return 0
    ranking = _ranking(config)
    return Report(to_json(ranking), text=lambda: _text(ranking))


def _ranking(config: SelectConfig, *, curves: bool = False) -> Ranking:
    from mlxhog.mad.report.ranking import read_ranking
    from mlxhog.mad.study.store import find

    select: Any = config.select  # its choices are the literals
    return read_ranking(find(config.study), select=select, curves=curves)


def _text(ranking: Ranking) -> str:
    from mlxhog.mad.report.leaderboard import lines

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return "\n".join(lines(ranking, width))


def _watch(config: LeaderboardConfig) -> None:
    """Show a study until its scheduler ends, or Ctrl-C; in a pipe, after every run that ended."""
    from mlxhog.mad.report.leaderboard import to_json

    with suppress(KeyboardInterrupt), ExitStack() as stack:  # the usual end
        live, ended = None, -1
        if sys.stdout.isatty() and not config.json:
            from rich.live import Live  # 50 ms, only on a terminal
            from rich.text import Text

            live = stack.enter_context(Live(console=console(sys.stdout), auto_refresh=False))
        while True:
            ranking = _ranking(config)
            if live is not None:
                live.update(Text(_text(ranking)), refresh=True)
            elif len(ranking.records) != ended or not ranking.running:
                if config.json:
                    print_json(to_json(ranking))
                else:
                    print(_text(ranking), flush=True)
            ended = len(ranking.records)
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


@dataclass(frozen=True, kw_only=True)
class CandidatesConfig(SelectConfig):
    """Options of `mlxhog mad compare`."""

    a: str = argument("A", "a place on the board, or layers")
    b: str = argument("B", "the other one")


@command("mad compare", COMPARE_ABOUT, COMPARE_EXAMPLES, CandidatesConfig)
def compare(config: CandidatesConfig) -> Report:
    """Compare two candidates."""
    from mlxhog.mad.report.comparison import candidate_of, compare, lines, to_json

    ranking = _ranking(config)
    a, b = (candidate_of(ranking, text) for text in (config.a, config.b))
    comparison = compare(a, b)
    return Report(to_json(comparison), words={}, notes=lines(comparison))


PLOT_ABOUT = """\
Write the plots of a study as PNG files, and one HTML page with all of them and the leaderboard. The
page needs no network, has a light and a dark theme, and can be printed.
Learning curves per task; score with its interval against parameters, state and time, with the
Pareto front. The study may be running."""
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


@command("mad plot", PLOT_ABOUT, PLOT_EXAMPLES, StudyPlotConfig)
def plot(config: StudyPlotConfig) -> Report:
    """Write the plots of a study."""
    from mlxhog.mad.report.page import page
    from mlxhog.mad.report.plots import plots
    from mlxhog.mad.study.store import find
    from mlxhog.report import charts

    store = find(config.study)
    charts.require("the leaderboard needs nothing: mlxhog mad board")
    ranking = _ranking(config, curves=True)
    folder = new_folder("--out", config.out or str(store.directory / "plots"))
    drawn = list(plots(ranking))
    written = {plot.name: str(folder / f"{plot.name}.png") for plot in drawn}
    for plot in drawn:
        replace_file(Path(written[plot.name]), plot.png(charts.LIGHT))
    target = folder / PAGE
    replace_file(target, page(ranking, drawn, version=version("mlxhog")).encode())
    if config.open == "auto" and not config.json:
        _open_page(target)
    facts = {"page": str(target), "plots": written, "partial": ranking.lacking}
    lines = [*written.values(), str(target), *filter(None, [ranking.lacking])]
    return Report(facts, words={}, notes=lines)


def _open_page(page: Path) -> None:
    """Open the page in a browser, if the command runs in a terminal on a machine with a screen."""
    screen = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if sys.stdout.isatty() and screen:
        webbrowser.open(page.absolute().as_uri())
