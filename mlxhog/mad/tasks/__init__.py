"""The six tasks: one generator each, pure NumPy, the same rows for every backend.

Source: Poli et al. 2024, arXiv:2403.17844; where the code of its authors is at fault, the module
of the task says what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from mlxhog.config import sources as config_sources
from mlxhog.config.options import did_you_mean
from mlxhog.config.sources import Given
from mlxhog.errors import ConfigError
from mlxhog.mad.run_config import GENERATOR_VERSION
from mlxhog.mad.tasks.compression import COMPRESSION
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.fuzzy_in_context_recall import FUZZY_IN_CONTEXT_RECALL
from mlxhog.mad.tasks.in_context_recall import IN_CONTEXT_RECALL, NOISY_IN_CONTEXT_RECALL
from mlxhog.mad.tasks.memorization import MEMORIZATION
from mlxhog.mad.tasks.selective_copying import SELECTIVE_COPYING
from mlxhog.mad.tasks.settings import Settings
from mlxhog.mad.tasks.streams import draw_fixed, draw_rows
from mlxhog.mad.tasks.task import IGNORED, TaskType

TASKS: Mapping[str, TaskType] = {
    task.name: task
    for task in (
        IN_CONTEXT_RECALL,
        FUZZY_IN_CONTEXT_RECALL,
        NOISY_IN_CONTEXT_RECALL,
        SELECTIVE_COPYING,
        COMPRESSION,
        MEMORIZATION,
    )
}
"""Every task by its full name, in the order of the paper."""

DEFAULT_SEED = 12345


def find(name: str) -> TaskType:
    """Return a task by its full or its short name, in any case.

    Raises:
        ConfigError: no such task; the nearest name is given.
    """
    known = {task.name: task for task in TASKS.values()}
    known |= {task.short.lower(): task for task in TASKS.values()}
    word = name.strip().lower().replace("_", "-")
    if word not in known:
        names = ", ".join(f"{task.name} ({task.short})" for task in TASKS.values())
        near = did_you_mean(word, known)
        raise ConfigError(f"no task {name!r}{near or f'; known are {names}'}")
    return known[word]


def resolve(name: str, given: Mapping[str, object], *, origin: str = "") -> Settings:
    """Return the settings of a task: its baseline, and over it what was given.

    Args:
        name: the task.
        given: setting -> value, also as text; the names of the files (vocab_size) will do, too.
        origin: where the values stand, such as "--set", for messages.

    Raises:
        ConfigError: an unknown setting (the nearest is named), a value of another type, or a rule
            of the task broken: which one, and what it allows.
    """
    task = find(name)
    where = {key: f"{origin} {key}" if origin else task.name for key in given}
    layer = [Given(key, value, where[key]) for key, value in given.items()]
    return config_sources.resolve(task.settings, [layer])


def make_task(
    name: str,
    *,
    seed: int = DEFAULT_SEED,
    processes: int = 1,
    labels: str = "dense",
    **settings: object,
) -> Dataset:
    """Draw the rows of a task.

    Args:
        name: full or short name.
        seed: of everything that is drawn, at least 0.
        processes: that draw; the rows are the same for any number.
        labels: of training rows of recall tasks: "dense", or "scored" as those of test rows.
        settings: as `resolve` takes them.

    Raises:
        ConfigError: the task, the seed or a setting cannot be.
        WorkerFailed: a generating process died.

    Concurrency: with several processes, children are spawned and gone when this returns.
    """
    task = find(name)
    chosen = resolve(name, settings)
    if seed < 0 or processes < 1:
        raise ConfigError(
            f"seed is {seed}, processes {processes}; a seed is at least 0, processes at least 1"
        )
    dense = labels == "dense"
    splits = {
        split: draw_rows(task, chosen, seed, split, n, processes, dense=dense and split == "train")
        for split, n in (
            ("train", chosen.train_rows),
            ("test", chosen.test_rows),
            ("val", chosen.val_rows),
        )
        if n
    }
    arrays: dict[str, Any] = {}
    for split, (x, y) in splits.items():
        arrays |= {f"{split}_x": x, f"{split}_y": y}
    for part, values in draw_fixed(task, chosen, seed).items():
        arrays[part] = values.astype(np.int32)
    return Dataset(**arrays, meta=meta(chosen, seed))


def meta(settings: Settings, seed: int) -> dict[str, object]:
    """Return task, seed and settings under the names of the files, those of all tasks in each."""
    own = asdict(settings)
    return {
        "task": settings.task,
        "seed": seed,
        "vocab_size": settings.vocab,
        "seq_len": settings.seq_len,
        "num_train": settings.train_rows,
        "num_test": settings.test_rows,
        "num_val": settings.val_rows,
        "multi_query": own.get("multi_query", True),
        "noise_vocab_size": own.get("noise_vocab", 0),
        "frac_noise": own.get("frac_noise", 0.0),
        "k_motif_size": own.get("k_motif", 1),
        "v_motif_size": own.get("v_motif", 1),
        "num_tokens_to_copy": own.get("tokens_to_copy", 0),
        "fuzzy_compat": own.get("fuzzy_compat", False),
        "generator": f"mlxhog {GENERATOR_VERSION}",
    }


__all__ = [
    "DEFAULT_SEED",
    "IGNORED",
    "TASKS",
    "Dataset",
    "Settings",
    "TaskType",
    "find",
    "make_task",
    "meta",
    "resolve",
]
