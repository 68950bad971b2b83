"""`mlxhog mad board` and `plot`: the leaderboard of a study, and its plots."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mlxhog.base.durable import replace_file
from mlxhog.base.paths import expanded
from mlxhog.cli.flags import Json, Plugins
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, option
from mlxhog.errors import ConfigError

BOARD_ABOUT = """\
The leaderboard of a study, from its directory only, during the study and after it.
Scores are in [0, 1]: the mean over the tasks, +- the 95 % interval over seeds. Incomplete
candidates are last; the last line counts them."""
BOARD_EXAMPLES = ("mad board first", "mad board studies/first --json")


@dataclass(frozen=True, kw_only=True)
class BoardConfig(Plugins, Json):
    """Options of `mlxhog mad board`."""

    study: str = argument("STUDY", "a name under studies/, or a path")


@command("mad board", BOARD_ABOUT, BOARD_EXAMPLES, BoardConfig)
def board(config: BoardConfig) -> Report:
    """Show the leaderboard."""
    from mlxhog.mad.report.leaderboard import read_ranking, section, to_json
    from mlxhog.mad.study.store import find

    ranking = read_ranking(find(config.study))
    return Report(to_json(ranking), text=lambda: [section(ranking)])


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
    from mlxhog.mad.report.leaderboard import read_ranking
    from mlxhog.mad.report.page import page, plots
    from mlxhog.mad.study.store import find
    from mlxhog.report import charts

    store = find(config.study)
    ranking = read_ranking(store, curves=True)
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
