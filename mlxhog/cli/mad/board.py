"""`mlxhog mad board`, `compare` and `plot`: the leaderboard of a study, two rows, its plots."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base.durable import replace_file
from mlxhog.base.paths import expanded
from mlxhog.cli.flags import Json, Plugins
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, option
from mlxhog.errors import ConfigError

if TYPE_CHECKING:
    from mlxhog.mad.report.ranking import Ranking

BOARD_ABOUT = """\
The leaderboard of a study, from its directory only, during the study and after it.
Scores are in [0, 1]: the mean over the tasks, +- the 95 % interval over seeds. Incomplete
candidates are last; the last line counts them."""
BOARD_EXAMPLES = ("mad board first", "mad board studies/first --json")


@dataclass(frozen=True, kw_only=True)
class BoardConfig(Plugins, Json):
    """Options of `mlxhog mad board`."""

    study: str = argument("STUDY", "a name under studies/, or a path")
    select: str | None = option(
        None,
        "rows whose accuracy selects between optimiser points; none: those of the study",
        choices=("test", "val"),
    )

    def ranking(self, *, curves: bool = False) -> Ranking:
        """Return the ranking of the study."""
        from mlxhog.mad.report.ranking import read_ranking
        from mlxhog.mad.study.store import find

        select: Any = self.select  # its choices are the literals
        return read_ranking(find(self.study), select=select, curves=curves)


@command("mad board", BOARD_ABOUT, BOARD_EXAMPLES, BoardConfig)
def board(config: BoardConfig) -> Report:
    """Show the leaderboard."""
    from mlxhog.mad.report.leaderboard import lines, to_json

    ranking = config.ranking()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return Report(to_json(ranking), words={}, notes=lines(ranking, width))


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
class CandidatesConfig(BoardConfig):
    """Options of `mlxhog mad compare`."""

    a: str = argument("A", "a place on the board, or layers")
    b: str = argument("B", "the other one")


@command("mad compare", COMPARE_ABOUT, COMPARE_EXAMPLES, CandidatesConfig)
def compare(config: CandidatesConfig) -> Report:
    """Compare two candidates."""
    from mlxhog.mad.report.comparison import candidate_of, compare, lines, to_json

    ranking = config.ranking()
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
    "mad plot first --out figures",
    "mad plot first --json",
)
PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class StudyPlotConfig(BoardConfig):
    """Options of `mlxhog mad plot`."""

    out: str | None = option(None, "folder for the files; none: plots/ in the study's")


@command("mad plot", PLOT_ABOUT, PLOT_EXAMPLES, StudyPlotConfig)
def plot(config: StudyPlotConfig) -> Report:
    """Write the plots of a study."""
    from mlxhog.mad.report.page import page
    from mlxhog.mad.report.plots import plots
    from mlxhog.mad.study.store import find
    from mlxhog.report import charts

    store = find(config.study)
    charts.require("the leaderboard needs nothing: mlxhog mad board")
    ranking = config.ranking(curves=True)
    folder = expanded(config.out) if config.out else store.directory / "plots"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create {folder}: {error.strerror}; choose another --out"
        ) from error
    drawn = list(plots(ranking))
    written = {plot.name: str(folder / f"{plot.name}.png") for plot in drawn}
    for plot in drawn:
        replace_file(Path(written[plot.name]), plot.png(charts.LIGHT))
    target = folder / PAGE
    replace_file(target, page(ranking, drawn, version=version("mlxhog")).encode())
    facts = {"page": str(target), "plots": written, "partial": ranking.lacking}
    lines = [*written.values(), str(target), *filter(None, [ranking.lacking])]
    return Report(facts, words={}, notes=lines)
