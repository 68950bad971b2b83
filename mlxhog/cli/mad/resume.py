"""`mlxhog mad resume`: go on with a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxhog.cli.flags import Flags
from mlxhog.cli.mad import study_flags
from mlxhog.config.sources import resolve
from mlxhog.mad.study.execution import ExecutionConfig

ABOUT = """\
Go on with a study that was stopped in any way: runs that ended stay, all others are run. Where it
is executed may change from session to session; what it consists of does not."""
EXAMPLES = (
    "mad resume first",
    "mad resume first --parallel 4 --budget 2h",
    "mad resume first --executor ray --ray-address auto",
    "mad resume first --retry-failed",
)


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad resume", ABOUT, EXAMPLES, ("STUDY",))
    flags.argument("study", metavar="STUDY", help="a name under studies/, or a path")
    flags.argument("--retry-failed", action="store_true", help="run failed runs again, too")
    flags.argument("--dry-run", action="store_true", help="say what would run, and stop")
    study_flags.add_output(flags)
    flags.options(ExecutionConfig)
    parsed = flags.parse(arguments)
    how = resolve(ExecutionConfig, [parsed.given], parsed.problems)
    return _resume(how, parsed.other)


def _resume(how: ExecutionConfig, other: Any) -> int:
    # These import NumPy: wrong flags are answered before.
    from mlxhog.cli.mad import study_session
    from mlxhog.machine import machine
    from mlxhog.mad.study import study as studies
    from mlxhog.mad.study.planning import Planning
    from mlxhog.mad.study.store import find

    store = find(other.study, Path(how.out))
    planning = Planning(studies.read(store))
    how.require(planning.study, machine.here())
    if other.dry_run:
        return study_session.dry_run(planning, store.name, how, store, as_json=other.json)
    return study_session.go(
        store,
        planning,
        how,
        as_json=other.json,
        quiet=other.quiet,
        retry_failed=other.retry_failed,
    )
