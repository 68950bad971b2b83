"""Print the leaderboard of a study, during the study or after it.

It is read from the study's directory only. Scores are in [0, 1]: the mean over the tasks, +- the 95
% interval over seeds. Partial and pruned candidates are behind all others, diverged and failed ones
last; the last line counts the partial ones.

Examples:
    mad leaderboard first
"""

from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, Json, Plugins, Tabular, argument, command, tabular


@dataclass(frozen=True, kw_only=True)
class OneStudy(Plugins, Json):
    """Options of a command on one study."""

    study: str = argument("STUDY", "a name under studies/, or a path")


@command()
def run(config: OneStudy, how: Tabular) -> CommandResult:
    from mlxhog.mad import leaderboard
    from mlxhog.mad.report.leaderboard import section

    ranking = leaderboard(config.study)
    return tabular(ranking.to_json(), section(ranking, exact=how.format == "csv"), how.format)
