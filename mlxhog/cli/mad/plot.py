"""Write the plots of a study, and one HTML page with them and the leaderboard.

The plots are PNG files. The page needs no network, has a light and a dark theme, and can be
printed. They are learning curves per task; score with its interval against parameters, state and
time, with the Pareto front. The study may be running.

Examples:
    mad plot first --output-dir figures
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mlxhog.base.durable import explained, replace_file
from mlxhog.base.inside import subfolder
from mlxhog.base.paths import expanded
from mlxhog.cli.frame import CommandResult, command, option
from mlxhog.cli.mad.leaderboard import OneStudy
from mlxhog.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class _Plot(OneStudy):
    output_dir: str | None = option(None, "folder for the files; none: plots/ in the study's")


@command(writes=True)
def run(config: _Plot) -> CommandResult:
    from mlxhog.mad.report.leaderboard import read_ranking
    from mlxhog.mad.report.page import page, plots
    from mlxhog.mad.study.store import find

    store = find(config.study)
    ranking = read_ranking(store)
    folder = expanded(config.output_dir) if config.output_dir else store.directory / "plots"
    try:
        if config.output_dir:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            subfolder(store.directory, "plots")
    except OSError as error:
        raise ConfigError(f"--output-dir {folder}: {explained(error)}") from error
    drawn, target = list(plots(ranking)), folder / "index.html"
    paths = {plot.name: str(folder / f"{plot.name}.png") for plot in drawn}
    for plot in drawn:
        replace_file(Path(paths[plot.name]), plot.file(ranking.study))
    replace_file(target, page(ranking, drawn, version=version("mlxhog")).encode())
    payload = {"page": str(target), "plots": paths, "partial": ranking.lacking}
    return CommandResult(payload, [*paths.values(), str(target), *filter(None, [ranking.lacking])])
