"""The tasks: a generator in NumPy for each, with the same rows for every backend.

Each block of rows has its own random stream.

Source: Poli et al. 2024, arXiv:2403.17844; the modules of the tasks list differences from the code
of its authors, and the sources of the tasks beside the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from mlxhog.config import choices, sources
from mlxhog.config.options import options
from mlxhog.errors import ConfigError
from mlxhog.mad.tasks.compression import Compression
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.depo import Depo
from mlxhog.mad.tasks.dyck import Dyck
from mlxhog.mad.tasks.fuzzy_in_context_recall import FuzzyInContextRecall
from mlxhog.mad.tasks.in_context_recall import InContextRecall, NoisyInContextRecall
from mlxhog.mad.tasks.mano import Mano
from mlxhog.mad.tasks.memorization import Memorization
from mlxhog.mad.tasks.multi_query_associative_recall import MultiQueryAssociativeRecall
from mlxhog.mad.tasks.selective_copying import SelectiveCopying
from mlxhog.mad.tasks.selective_grammar import SelectiveGrammar
from mlxhog.mad.tasks.state_tracking import StateTracking
from mlxhog.mad.tasks.task import GENERATOR_VERSION, IGNORED, Fixed, Rng, Rows, Task

BLOCK_ROWS = 256
"""Rows of one random stream; another number changes the rows."""

DEFAULT_SEED = 12345
SPLITS = ("train", "test", "val")
_FIXED = len(SPLITS)

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

register = choices.TASKS.register
known = choices.TASKS.known

for _task in (*BENCHMARK.values(), *TASKS_BESIDE.values()):
    register(_task)


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
    tasks, key = _by_name(known().values()), _key(name)
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

    Args:
        name: the task.
        values: setting -> value or its text; the names of the files (vocab_size) are possible too.
        origin: of the values, such as "--set", for messages.

    Raises:
        ConfigError: a setting is unknown (the message suggests the nearest), a value has another
            type or breaks a rule of the task (the message has the rule).
    """
    task = find(name)
    layer = {
        key: (value, f"{origin} {key}" if origin else task.name) for key, value in values.items()
    }
    return sources.resolve(task, [layer])


def make_task(
    name: str,
    *,
    seed: int = DEFAULT_SEED,
    labels: str = "dense",
    **settings: object,
) -> Dataset:
    """Draw the rows of a task.

    Args:
        name: full or short name.
        seed: of all draws, at least 0.
        labels: of training rows of recall tasks: "dense", or "scored" as in test rows.
        settings: see `resolve`.

    Raises:
        ConfigError: there is no such task, or the seed or a setting is not possible.
    """
    task = resolve(name, settings)
    if seed < 0:
        raise ConfigError(f"seed is {seed}; a seed is at least 0")
    arrays: dict[str, Any] = {
        name: values.astype(np.int32) for name, values in _draw_fixed(task, seed).items()
    }
    for split in SPLITS:
        if n := getattr(task, f"{split}_rows"):
            dense = labels == "dense" and split == "train"
            x, y = draw_rows(task, seed, split, n, dense=dense)
            arrays |= {f"{split}_x": x, f"{split}_y": y}
    return Dataset(**arrays, meta=meta(task, seed))


def meta(settings: Task, seed: int) -> dict[str, object]:
    """Return task, seed and every setting, under the names of the files."""
    named = {
        next(iter(one.aliases), name): getattr(settings, name)
        for name, one in options(type(settings)).items()
    }
    generator = f"mlxhog {GENERATOR_VERSION}"
    return {"task": settings.name, "seed": seed, **named, "generator": generator}


def stream(seed: int, *branch: int) -> Rng:
    """Return the generator at a branch of the tree of streams below a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=branch))


def _draw_fixed(task: Task, seed: int) -> Fixed:
    """Draw the common part of all rows; it depends on the seed and the settings only."""
    return task.draw_fixed(stream(seed, _FIXED))


def draw_rows(task: Task, seed: int, split: str, n: int, *, dense: bool = False) -> Rows:
    """Draw the first n rows of a split, int32; with `dense` every position has a target."""
    train = split == "train"
    fixed = _draw_fixed(task, seed)
    shape = (-(-n // BLOCK_ROWS) * BLOCK_ROWS, task.length if train else task.test_length)
    x, y = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for number, begin in enumerate(range(0, n, BLOCK_ROWS)):
        block, rng = slice(begin, begin + BLOCK_ROWS), stream(seed, SPLITS.index(split), number)
        x[block], y[block] = task.draw(rng, BLOCK_ROWS, train=train, dense=dense, fixed=fixed)
    return x[:n], y[:n]


__all__ = [
    "BENCHMARK", "BLOCK_ROWS", "DEFAULT_SEED", "GENERATOR_VERSION", "IGNORED", "TASKS_BESIDE",
    "Dataset", "Task", "find", "make_task", "meta", "register", "resolve",
]  # fmt: skip
