"""Search a space of architectures, several at once.

It trains candidates on every task config of a suite, and keeps every result in studies/NAME. Runs
end early if their candidate has a low rank at a rung. After a kill at any time, the same line or
mad resume continues. After one Ctrl-C the runs in progress end, a second one drops them.

The space is a YAML file, or space-small (the default) or space-xlstm of the package. A short one:

  space: {depth: 4, mixers: [mlstm, mh-attention], channels: [swiglu]}

Examples:
    mad search --space space-small --suite smoke --parallel 2 --study first
    mad search --space space.yaml --suite lite --sampler evolution --budget 2h --seeds 3
    mad search --space space.yaml --no-prune --executor ray --study first
    mad search --plugin examples/my_task.py --tasks in-context-recall,my_task --steps 20
    mad search --space space.yaml --suite full --dry-run
    mad search --suite lm:20s --space space-xlstm --candidates 6 --parallel 2 --study t

Main options:
    space suite data candidates tasks sampler seeds rates dim steps backend workers parallel
    budget study objective limit prune dry_run json
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxhog.base import disk
from mlxhog.base.paths import path_from_here
from mlxhog.cli.frame import CommandResult, command, command_line, option
from mlxhog.cli.frame.flags import OptionGroup, Plugins, Quiet
from mlxhog.config.sources import ConfigSource
from mlxhog.errors import INTERRUPTED
from mlxhog.mad import api
from mlxhog.mad.options import RECIPE, ExecutionConfig, Recipe, SearchOptions

if TYPE_CHECKING:
    from mlxhog.mad.api import Study

TRAINING = OptionGroup(
    Recipe,
    " ".join(RECIPE),
    "training of every run; replaces the values of the suite",
    "the suite's",
    merged=True,
)


@dataclass(frozen=True, kw_only=True)
class SessionOptions(Plugins, Quiet):
    """Options of a session of a study that have no effect on its results."""

    dry_run: bool = option(False, "print the plan and exit")


@dataclass(frozen=True, kw_only=True)
class _Search(SessionOptions, SearchOptions):
    pass


@command(overrides=TRAINING, writes=True)
def run(config: _Search, overrides: ConfigSource, how: ExecutionConfig) -> CommandResult:
    return run_session(api.new_search(config, api.recipe_of(overrides), how), how, config)


def run_session(study: "Study", how: ExecutionConfig, config: SessionOptions) -> CommandResult:
    """Execute a session of a study, or print its plan."""
    if config.dry_run:
        return CommandResult(study.plan(how))
    from mlxhog.mad.report.progress import shown

    with shown(sys.stderr, quiet=config.quiet) as show:
        payload = study.run(how, show).to_json()
    store, status = study.store, study.status
    state = {"budget": "the budget is used up"}.get(status, status)
    lacks = disk.note(store.directory, disk.FILES_ALONE)
    text: list[Any] = [payload | {"status": state}, *filter(None, [lacks])]
    name = store.word
    if payload["runs"]["failed"]:
        text.append(
            f"failed runs: reasons in {path_from_here(store.directory)}/runs.jsonl, and logs/ "
            f"beside it; again with mlxhog mad resume {name}"
        )
    if status != "done":  # its budget is used up
        flags = command_line(how, leave_out=("budget", "studies_dir"))
        text.append(f"continue: mlxhog mad resume {name}" + f" {flags}" * bool(flags))
    text += [f"next: mlxhog mad leaderboard {name}", f"      mlxhog mad plot {name}"]
    return CommandResult(
        payload, text, 1 if study.has_failed else INTERRUPTED * (status == "interrupted")
    )
