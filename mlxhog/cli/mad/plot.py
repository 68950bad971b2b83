"""`mlxhog mad plot`: the plots of a study as PNG files, and one page with all of them."""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mlxhog.cli.flags import Flags
from mlxhog.config.options import option
from mlxhog.config.sources import resolve
from mlxhog.errors import ConfigError
from mlxhog.files.durable import replace_file

ABOUT = """\
Write the plots of a study as PNG files, and one HTML page with all of them and the leaderboard: it
needs no network, follows the reader's light or dark screen, and prints.
Learning curves per task; score against parameters, state and time with the Pareto front; what each
slot decides; the seeds with their intervals. Works on a study that is running, too."""
EXAMPLES = ("mad plot first", "mad plot first --out figures --open no", "mad plot first --json")
PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Options of `mlxhog mad plot`."""

    out: str | None = option(None, "folder for the files; none: plots/ in the study's")
    open: str = option(
        "auto", "show the page in a browser, where there is a screen", choices=("auto", "no")
    )
    select: str | None = option(
        None,
        "rows whose accuracy chooses between optimiser points; none: as the study says",
        choices=("test", "val"),
    )
    against: str | None = option(None, "another study: the rank correlation of both orders")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad plot", ABOUT, EXAMPLES, ("STUDY",))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.argument("--json", action="store_true", help="one JSON object: page, and plots by name")
    flags.options(PlotConfig)
    parsed = flags.parse(arguments)
    config = resolve(PlotConfig, [parsed.given], parsed.problems)
    from mlxhog.mad.report.look import look
    from mlxhog.mad.report.page import page
    from mlxhog.mad.report.plots import plots
    from mlxhog.mad.study.store import find
    from mlxhog.report import charts

    store = find(parsed.other.study)
    other = None if config.against is None else find(config.against)
    charts.require("the leaderboard needs nothing: mlxhog mad board")
    standing = look(store, select=config.select, against=other, curves=True)  # type: ignore[arg-type]
    folder = store.directory / "plots" if config.out is None else Path(config.out)
    _make(folder)
    drawn = list(plots(standing))
    written = {}
    for plot in drawn:
        written[plot.name] = folder / f"{plot.name}.png"
        replace_file(written[plot.name], plot.png(charts.LIGHT))
    replace_file(folder / PAGE, page(standing, drawn, version=version("mlxhog")).encode())
    if parsed.other.json:
        files = {name: str(path) for name, path in written.items()}
        print(json.dumps({"page": str(folder / PAGE), "plots": files, "partial": standing.lacking}))
    else:
        print(*written.values(), folder / PAGE, sep="\n")
        if standing.lacking:
            print(standing.lacking)
    if config.open == "auto" and not parsed.other.json:
        _show(folder / PAGE)
    return 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make {folder}: {error.strerror}; choose another --out"
        ) from error


def _show(page: Path) -> None:
    """Open the page where a person sits at a screen; nothing happens elsewhere."""
    screen = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if sys.stdout.isatty() and screen:
        webbrowser.open(page.absolute().as_uri())
