"""Write the plots of a study, and one HTML page with them and the leaderboard.

The plots are PNG files. The page needs no network, has a light and a dark theme, and can be
printed. They are learning curves per task; score with its interval against parameters, state and
time, with the Pareto front. The study may be running.

Examples:
    mad plot first --output-dir figures
"""

from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, command, option
from mlxhog.cli.mad.leaderboard import OneStudy


@dataclass(frozen=True, kw_only=True)
class _Plot(OneStudy):
    output_dir: str | None = option(None, "folder for the files; none: plots/ in the study's")


@command(writes=True)
def run(config: _Plot) -> CommandResult:
    from mlxhog.mad.report.page import write
    from mlxhog.mad.study.store import find

    payload = write(find(config.study), config.output_dir)
    files = [*payload["plots"].values(), payload["page"]]
    return CommandResult(payload, [*files, *filter(None, [payload["partial"]])])
