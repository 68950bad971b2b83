"""Continue a study after any stop.

Its results are kept; failed runs and those not begun are started. The execution may change from
session to session, the definition does not.

Examples:
    mad resume first
    mad resume first --parallel 4 --budget 2h
    mad resume first --executor ray --ray-address auto
"""

from dataclasses import dataclass
from pathlib import Path

from mlxhog.cli.frame import CommandResult, argument, command
from mlxhog.cli.mad.search import SessionOptions, run_session
from mlxhog.mad import api
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.study.store import find


@dataclass(frozen=True, kw_only=True)
class _Resume(SessionOptions):
    study: str = argument("STUDY", "a name under studies/, or a path")


@command(writes=True)
def run(config: _Resume, how: ExecutionConfig) -> CommandResult:
    store = find(config.study, Path(how.studies_dir))
    store.refuse_links()  # before a file is read through one
    study = api.Study(store)
    study.refuse_changes()
    return run_session(study, how, config)
