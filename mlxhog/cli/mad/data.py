"""Generate the training and test examples of a task, and write them to an .npz file.

It has train_inputs, train_targets, test_inputs, test_targets, and meta (JSON). Targets are aligned
with inputs; -100 is ignored. One seed gives the same examples and the same file on every machine.
The output has the majority-token accuracy (majority_accuracy) and the best achievable accuracy
(best_achievable). `mlxhog mad tasks` lists the tasks and their settings.

Examples:
    mad data --task in-context-recall --task-set vocab=16 --task-set seq_len=32 --output cr.npz
    mad data --task NR --task-set frac_noise=0.4 --output noisy.npz --json
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

from mlxhog.base.plain_yaml import assignments
from mlxhog.cli.frame import CommandResult, Json, Plugins, command, option, writable
from mlxhog.mad.options import DEFAULT_SEED, TaskOptions

OTHERWISE = "; a setting of the task is given as in --task-set vocab=32"
SIZES = ("vocab", "seq_len", "length", "test_length", "train_rows", "test_rows", "val_rows")


@dataclass(frozen=True, kw_only=True)
class _Data(TaskOptions, Plugins, Json):
    task: str = option("", "full or short name of the task, as in mlxhog mad tasks", required=True)
    output: str = option("", "file to write or replace", required=True)
    seed: int = option(DEFAULT_SEED, "random seed", low=0)


@command(otherwise=OTHERWISE, writes=True)
def run(config: _Data) -> CommandResult:
    # These import NumPy: wrong flags are reported before.
    from mlxhog.mad import tasks
    from mlxhog.mad.tasks import dataset

    settings = tasks.resolve(config.task, assignments(config.task_set), origin="--task-set")
    path = writable("--output", config.output)
    payload: dict[str, Any] = {"file": str(path), "task": settings.name, "seed": config.seed}
    payload |= {name: getattr(settings, name) for name in SIZES}
    n_rows = settings.train_rows + settings.test_rows + settings.val_rows
    began = time.perf_counter()
    drawn = tasks.make_task(config.task, seed=config.seed, **asdict(settings))
    seconds = time.perf_counter() - began
    payload |= {
        "best_achievable": dataset.best_achievable(drawn),
        "majority_accuracy": dataset.majority_accuracy(drawn),
        "rows_per_s": n_rows / seconds,
        "seconds": seconds,
        "bytes": dataset.write(path, drawn),
    }
    return CommandResult(payload)
