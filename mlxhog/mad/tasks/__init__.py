"""The tasks: a generator in NumPy for each, with the same examples for every backend.

Source: Poli et al. 2024, arXiv:2403.17844; the modules of the tasks list differences from the code
of its authors, and the sources of the tasks beside the benchmark.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields

import numpy as np

from mlxhog.config import components as choices
from mlxhog.config import sources
from mlxhog.config.options import options
from mlxhog.data.batch import IGNORED
from mlxhog.errors import ConfigError
from mlxhog.mad.options import DEFAULT_SEED
from mlxhog.mad.tasks.automata import Dyck, SelectiveGrammar, StateTracking
from mlxhog.mad.tasks.copying import Compression, Memorization, SelectiveCopying
from mlxhog.mad.tasks.dataset import Dataset, Int32
from mlxhog.mad.tasks.knowledge import Depo, Mano
from mlxhog.mad.tasks.recall import (
    FuzzyInContextRecall,
    InContextRecall,
    MultiQueryAssociativeRecall,
    NoisyInContextRecall,
)
from mlxhog.mad.tasks.task import GENERATOR_VERSION, Rng, Task
from mlxhog.mad.tasks.text import LanguageModeling

BLOCK_ROWS = 256
"""Examples drawn by one random generator; another number changes them."""

SPLITS = ("train", "test", "val")

BENCHMARK: Mapping[str, type[Task]] = {
    task.name: task
    for task in (
        InContextRecall, FuzzyInContextRecall, NoisyInContextRecall, SelectiveCopying, Compression,
        Memorization,
    )
}  # fmt: skip
"""The tasks of the benchmark by their full names, in the order of the paper."""

TASKS_BESIDE: Mapping[str, type[Task]] = {
    task.name: task
    for task in (MultiQueryAssociativeRecall, SelectiveGrammar, StateTracking, Dyck, Depo, Mano)
}
"""The tasks of the package that are not part of the benchmark."""

known = choices.TASKS.known

for _task in (*BENCHMARK.values(), *TASKS_BESIDE.values()):
    choices.TASKS.register(_task)


@choices.TASKS.checked_by
def _check_task(task: type[Task]) -> None:
    """Refuse a task with a setting without a value, or whose names are taken."""
    for field in fields(task):
        if field.name not in options(task):
            raise ConfigError(
                f"setting {field.name} of task {task.name!r} needs a default and one of the types "
                "int, float, bool, str, or one of these with None"
            )
    taken = _by_name(other for other in known().values() if other is not task)
    if taken.keys() & _by_name([task]).keys():
        raise ConfigError(
            f"task {task.name!r} ({task.short}) has a name that is taken; choose others than "
            f"{_listed(taken.values())}"
        )


def find(name: str) -> type[Task]:
    """Return a task by its full or its short name, in any case.

    Raises:
        UnknownChoice: no such task; the message suggests the nearest name.
    """
    tasks, key = _by_name([*known().values(), LanguageModeling]), _key(name)
    if key not in tasks:
        raise choices.TASKS.unknown(name, tasks, _listed(tasks.values()))
    return tasks[key]


def _by_name(tasks: Iterable[type[Task]]) -> dict[str, type[Task]]:
    return {_key(name): task for task in tasks for name in (task.name, task.short)}


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _listed(tasks: Iterable[type[Task]]) -> str:
    return ", ".join(dict.fromkeys(f"{task.name} ({task.short})" for task in tasks))


def resolve(name: str, values: Mapping[str, object], *, origin: str = "") -> Task:
    """Return a task with its settings: those of the baseline, with some values replaced.

    `values` are by setting, also by its name in files (vocab_size), and may be texts; messages name
    their `origin`, such as "--task-set".

    Raises:
        ConfigError: a setting is unknown (the message suggests the nearest), a value has another
            type or breaks a rule of the task (the message has the rule).
    """
    task = find(name)
    where = {key: f"{origin} {key}" if origin else task.name for key in values}
    return sources.resolve(task, [{key: (value, where[key]) for key, value in values.items()}])


def make_task(
    name: str, *, seed: int = DEFAULT_SEED, labels: str = "dense", **settings: object
) -> Dataset:
    """Draw the examples of a task, with settings as of `resolve`.

    `labels` are those of training examples of recall tasks: "dense", or "scored" as in tests.

    Raises:
        ConfigError: there is no such task, or the seed or a setting is not possible.
    """
    task = resolve(name, settings)
    if seed < 0:
        raise ConfigError(f"seed is {seed}; a seed is at least 0")
    fixed = task.draw_fixed(_stream(seed, len(SPLITS)))  # depends on seed and settings only
    arrays: dict[str, Int32] = {name: values.astype(np.int32) for name, values in fixed.items()}
    for number, split in enumerate(SPLITS):
        train, n = split == "train", getattr(task, f"{split}_rows")
        dense = train and labels == "dense"
        shape = (-(-n // BLOCK_ROWS), BLOCK_ROWS, task.length if train else task.test_length)
        x, y = np.empty(shape, np.int32), np.empty(shape, np.int32)
        for block in range(len(x)):
            rng = _stream(seed, number, block)
            x[block], y[block] = task.draw(rng, BLOCK_ROWS, train=train, dense=dense, fixed=fixed)
        if n:
            x, y = (array.reshape(-1, shape[-1])[:n] for array in (x, y))
            arrays |= {f"{split}_x": x, f"{split}_y": y}
    specs = options(type(task)).items()
    named = {next(iter(one.aliases), name): getattr(task, name) for name, one in specs}
    meta = {"task": task.name, "seed": seed, **named, "generator": f"mlxhog {GENERATOR_VERSION}"}
    return Dataset(**arrays, meta=meta)


def _stream(seed: int, *branch: int) -> Rng:
    """Return the generator at a branch of the tree of streams below a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=branch))


__all__ = [
    "BENCHMARK", "BLOCK_ROWS", "DEFAULT_SEED", "GENERATOR_VERSION", "IGNORED", "TASKS_BESIDE",
    "Dataset", "Task", "find", "known", "make_task", "resolve",
]  # fmt: skip
