"""Continue a study after any stop.

Its results are kept; failed runs and those not begun are started. The execution may change from
session to session, the definition does not.

Examples:
    mad resume first
    mad resume first --parallel 4 --budget 2h
    mad resume first --executor ray --ray-address auto
"""

from dataclasses import dataclass

from mlxhog.cli.frame import CommandResult, argument, command
from mlxhog.cli.mad.search import SessionOptions, run_session
from mlxhog.mad import api
from mlxhog.mad.options import ExecutionConfig


@dataclass(frozen=True, kw_only=True)
class _Resume(SessionOptions):
    study: str = argument("STUDY", "a name under studies/, or a path")


@command(writes=True)
def run(config: _Resume, how: ExecutionConfig) -> CommandResult:
    study = api.Study(config.study, studies_dir=how.studies_dir)
    study.refuse_changes()
    return run_session(study, how, config)
