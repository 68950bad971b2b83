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

Main options:
    space suite tasks sampler seeds rates dim steps backend workers parallel budget study
    prune dry_run json
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.base import disk
from mlxhog.cli.frame import CommandResult, command, command_line, option
from mlxhog.cli.frame.flags import OptionGroup, Plugins, Quiet
from mlxhog.config.options import MAX_SEED, options
from mlxhog.config.sources import ConfigSource
from mlxhog.errors import INTERRUPTED
from mlxhog.mad import api
from mlxhog.mad.options import DEFAULT_SEED, RECIPE, ExecutionConfig, Recipe

if TYPE_CHECKING:
    from mlxhog.mad.study.store import Store
    from mlxhog.mad.study.study import Study

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
class StudyOptions(SessionOptions):
    """Options that begin a study."""

    study: str | None = option(None, "name of the study, new or to be continued", metavar="NAME")
    suite: str | None = option(
        None,
        "tasks and optimizer points, such as smoke, lite or full; mlxhog mad suites lists all",
        none="the space's, or smoke",
    )  # fmt: skip
    tasks: str | None = option(None, "only these tasks of the suite, by commas", none="all")
    seeds: str = option(
        "1",
        f"number of seeds of every run, from {DEFAULT_SEED} on; or a list: 1,2,3 (one seed: 7,)",
        reads=api.read_seeds,
    )
    rates: str | None = option(
        None,
        "learning rates to sweep, such as 5e-4,1e-3,2e-3; the best per task config is scored",
        none="the suite's", excludes=("lr",), reads=api.read_rates,
    )  # fmt: skip
    dim: int | None = option(None, "width", low=1, none="the architecture's, or the suite's")
    backend: str | None = option(
        None, "mlx or torch, or one of them with its device, such as mlx:cpu", none="torch:cpu"
    )
    workers: str | None = option(
        None, "several workers inside a candidate, such as mlx:cpu,torch:cpu", none="one",
        excludes=("backend",),
    )  # fmt: skip
    threads: int = option(1, "threads of each worker", low=1)
    share_embedding: bool = option(
        False, "candidates train one embedding table together, lock-free"
    )


@dataclass(frozen=True, kw_only=True)
class _Search(StudyOptions):
    prune: bool = option(True, "end runs early whose candidate has a low rank at a rung")
    space: str = option("space-small", "the search space: a YAML file or a name")
    sampler: str = option(
        "grid", "sampler of candidates", choices=("grid", "random", "evolution", "tpe")
    )
    seed: int = option(0, "seed of the sampler", low=0, high=MAX_SEED)


@command(overrides=TRAINING, writes=True)
def run(config: _Search, overrides: ConfigSource, how: ExecutionConfig) -> CommandResult:
    recipe = api.recipe_of(overrides)
    # It imports NumPy: wrong flags are reported before.
    from mlxhog.mad.samplers.space import read_space, to_space

    keys = read_space(config.space)
    space = to_space(keys)
    return begin(
        config, how, Path(config.space).stem, space=keys, position=space.position,
        suite=config.suite or space.suite or "smoke", dim=config.dim or space.dim,
        recipe=recipe, sampler=config.sampler, sampler_seed=config.seed,
        prune=config.prune,
    )  # fmt: skip


def begin(
    config: StudyOptions, how: ExecutionConfig, name: str | None, **fields: Any
) -> CommandResult:
    """Begin a study with some fields, or continue the same one."""
    store, study = api.define(
        config.study, name, Path(how.studies_dir),
        tasks=None if config.tasks is None else config.tasks.split(","),
        backend=config.backend, workers=config.workers, threads=config.threads,
        seeds=api.read_seeds(config.seeds),
        rates=() if config.rates is None else api.read_rates(config.rates),
        share_embedding=config.share_embedding, **fields,
    )  # fmt: skip
    return run_session(store, study, how, config)


def run_session(
    store: "Store", study: "Study", how: ExecutionConfig, config: SessionOptions
) -> CommandResult:
    """Execute a session of a study, whose store may not exist yet, or report its plan."""
    from mlxhog.mad.report.progress import shown
    from mlxhog.mad.study.session import check_execution, execute
    from mlxhog.mad.study.store import open_store

    parallel = check_execution(how, study)
    if config.dry_run:
        return CommandResult(_plan(store, study, how, parallel))
    store = open_store(study, store.directory.parent, store.name)
    view = shown(sys.stderr, quiet=config.quiet)
    outcome = execute(store, study, how, view)
    failed = outcome.status != "interrupted" and set(outcome.statuses) == {"failed"}
    best = {} if outcome.best is None or failed else {
        "candidate": outcome.best.candidate, "score": outcome.best.selection_score,
        "interval": outcome.best.interval, "missing": len(outcome.best.missing),
    }  # fmt: skip
    payload = {
        "study": str(store.directory),
        "status": outcome.status,
        "runs": {
            name: outcome.statuses.get(name, 0) for name in ("done", "failed", "pruned", "diverged")
        },
        "seconds": outcome.elapsed_s,
        "best": best or None,
    }
    state = {"budget": "the budget is used up"}.get(outcome.status, outcome.status)
    lacks = disk.note(store.directory, disk.FILES_ALONE)
    text: list[Any] = [payload | {"status": state}, *filter(None, [lacks])]
    default = options(type(how))["studies_dir"].default
    name = shlex.quote(store.name if how.studies_dir == default else str(store.directory))
    if outcome.statuses.get("failed"):
        text.append(
            f"failed runs: reasons in {how.studies_dir}/{store.name}/runs.jsonl, and logs/ beside "
            f"it; again with mlxhog mad resume {name}"
        )
    if outcome.status != "done":  # its budget is used up
        flags = command_line(how, leave_out=("budget", "studies_dir"))
        text.append(f"continue: mlxhog mad resume {name}" + f" {flags}" * bool(flags))
    text += [f"next: mlxhog mad leaderboard {name}", f"      mlxhog mad plot {name}"]
    return CommandResult(
        payload, text, 1 if failed else INTERRUPTED * (outcome.status == "interrupted")
    )


def _plan(store: "Store", study: "Study", how: ExecutionConfig, parallel: int) -> dict[str, Any]:
    from mlxhog.mad.training.evaluation import max_steps

    ended, steps = len(store.records()), None
    known = [n for n in (study.choices.count, how.budget.steps) if n is not None]
    runs = min(known) * study.runs_each if known else None
    if runs is not None:
        of_candidate = sum(map(max_steps, study.runs(study.first)))
        steps = of_candidate * max(0, runs - ended) // study.runs_each
    return {
        "study": store.name,
        "suite": study.suite,
        "dim": study.measured.dim,
        "workers": study.workers,
        "candidates": study.choices.count,
        "runs_each": study.runs_each,
        "seeds": list(study.seeds),
        "runs": runs,
        "ended": ended,
        "steps": steps,
        "parallel": parallel,
    }
