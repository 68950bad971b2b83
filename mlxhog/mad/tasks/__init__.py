"""The tasks: a generator in NumPy for each, with the same rows for every backend.

Each block of rows has its own random stream, so processes draw blocks in any order.

Source: Poli et al. 2024, arXiv:2403.17844; the modules of the tasks list differences from the code
of its authors, and the sources of the tasks beside the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import numpy as np

from mlxhog.config import choices, sources
from mlxhog.config.options import options
from mlxhog.config.sources import Assignment
from mlxhog.errors import ConfigError, DataError, WorkerFailed
from mlxhog.machine.processes import follow_parent, spawning
from mlxhog.mad.tasks.compression import COMPRESSION
from mlxhog.mad.tasks.dataset import FIXED_PARTS, Dataset
from mlxhog.mad.tasks.depo import DEPO
from mlxhog.mad.tasks.dyck import DYCK
from mlxhog.mad.tasks.fuzzy_in_context_recall import FUZZY_IN_CONTEXT_RECALL
from mlxhog.mad.tasks.in_context_recall import IN_CONTEXT_RECALL, NOISY_IN_CONTEXT_RECALL
from mlxhog.mad.tasks.mano import MANO
from mlxhog.mad.tasks.memorization import MEMORIZATION
from mlxhog.mad.tasks.multi_query_associative_recall import MULTI_QUERY_ASSOCIATIVE_RECALL
from mlxhog.mad.tasks.selective_copying import SELECTIVE_COPYING
from mlxhog.mad.tasks.selective_grammar import SELECTIVE_GRAMMAR
from mlxhog.mad.tasks.state_tracking import STATE_TRACKING
from mlxhog.mad.tasks.task import (
    GENERATOR_VERSION,
    IGNORED,
    Fixed,
    Ints,
    Rows,
    Settings,
    TaskType,
)

BLOCK_ROWS = 256
"""Rows of one random stream; another number changes the rows."""

DEFAULT_SEED = 12345
SPLITS = ("train", "test", "val")
_FIXED = len(SPLITS)
_SHARED = options(Settings).keys()

BENCHMARK: Mapping[str, TaskType] = {
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
"""The tasks of the benchmark by their full names, in the order of the paper."""

TASKS_BESIDE: Mapping[str, TaskType] = {
    task.name: task
    for task in (
        MULTI_QUERY_ASSOCIATIVE_RECALL,
        SELECTIVE_GRAMMAR,
        STATE_TRACKING,
        DYCK,
        DEPO,
        MANO,
    )
}
"""The tasks of the package that are not part of the benchmark."""

register = choices.TASKS.register
known = choices.TASKS.known

for _task in (*BENCHMARK.values(), *TASKS_BESIDE.values()):
    register(_task)


@choices.TASKS.checked_by
def _check_task(task: TaskType) -> None:
    """Refuse a task whose settings have another name or no values, or whose names are taken."""
    if task.settings.task != task.name:
        raise ConfigError(
            f"the settings of task {task.name!r} have task {task.settings.task!r}; give both the "
            "same name"
        )
    for field in fields(task.settings):
        if field.name not in options(task.settings):
            raise ConfigError(
                f"setting {field.name} of task {task.name!r} needs a default and one of the types "
                "int, float, bool, str, or one of these with None"
            )
    others = [other for other in known().values() if other is not task]
    if _by_key(others).keys() & _by_key([task]).keys():
        raise ConfigError(
            f"task {task.name!r} ({task.short}) has a name that is taken; choose others than "
            f"{_listed(others)}"
        )


def find(name: str) -> TaskType:
    """Return a task by its full or its short name, in any case.

    Raises:
        UnknownChoice: no such task; the message suggests the nearest name.
    """
    tasks, key = known().values(), _key(name)
    by_key = _by_key(tasks)
    if key not in by_key:
        raise choices.TASKS.unknown(name, by_key, _listed(tasks))
    return by_key[key]


def _by_key(tasks: Iterable[TaskType]) -> dict[str, TaskType]:
    """Return tasks by their full and their short names, as `find` compares them."""
    return {_key(name): task for task in tasks for name in (task.name, task.short)}


def _key(name: str) -> str:
    """Return a name as `find` compares it."""
    return name.strip().lower().replace("_", "-")


def _listed(tasks: Iterable[TaskType]) -> str:
    return ", ".join(f"{task.name} ({task.short})" for task in tasks)


def resolve(name: str, values: Mapping[str, object], *, origin: str = "") -> Settings:
    """Return the settings of a task: the baseline with some values replaced.

    Args:
        name: the task.
        values: setting -> value or its text; the names of the files (vocab_size) are possible too.
        origin: of the values, such as "--set", for messages.

    Raises:
        ConfigError: a setting is unknown (the message suggests the nearest), a value has another
            type or breaks a rule of the task (the message has the rule).
    """
    task = find(name)
    layer = [
        Assignment(key, value, f"{origin} {key}" if origin else task.name)
        for key, value in values.items()
    ]
    return sources.resolve(task.settings, [layer])


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
        seed: of all draws, at least 0.
        processes: that draw; the rows are the same for any number.
        labels: of training rows of recall tasks: "dense", or "scored" as in test rows.
        settings: see `resolve`.

    Raises:
        ConfigError: there is no such task, or the seed or a setting is not possible.
        WorkerFailed: a generating process died.

    Concurrency: with several processes, children are spawned; they have ended at the return.
    """
    task = find(name)
    chosen = resolve(name, settings)
    if seed < 0 or processes < 1:
        raise ConfigError(
            f"seed is {seed}, processes {processes}; a seed is at least 0, processes at least 1"
        )
    dense = labels == "dense"
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        if n := getattr(chosen, f"{split}_rows"):
            own = dense and split == "train"
            x, y = draw_rows(task, chosen, seed, split, n, processes, dense=own)
            arrays |= {f"{split}_x": x, f"{split}_y": y}
    for part, values in draw_fixed(task, chosen, seed).items():
        arrays[part] = values.astype(np.int32)
    return Dataset(**arrays, meta=meta(chosen, seed))


def meta(settings: Settings, seed: int) -> dict[str, object]:
    """Return task, seed and the settings of all tasks, under the names of the files.

    Settings of a user's task have their own names.
    """
    own = asdict(settings)
    extra = {} if settings.task in BENCHMARK else {name: own[name] for name in own.keys() - _SHARED}
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
        **extra,
    }


def stream(seed: int, *branch: int) -> np.random.Generator:
    """Return the generator at a branch of the tree of streams below a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=branch))


def draw_fixed(task: TaskType, settings: Settings, seed: int) -> Fixed:
    """Draw the common part of all rows; it depends on the seed and the settings only."""
    return task.fixed(settings, stream(seed, _FIXED))


def draw_rows(
    task: TaskType,
    settings: Settings,
    seed: int,
    split: str,
    n: int,
    processes: int,
    *,
    dense: bool = False,
) -> Rows:
    """Draw the first n rows of a split, the same for any number of processes.

    With `dense` every position has a target, see `Draw`.

    Raises:
        WorkerFailed: a generating process died.
    """
    blocks = -(-n // BLOCK_ROWS)
    processes = min(processes, blocks)
    pool = _pool(processes)
    if pool is None:
        x, y = _draw_blocks(task.name, settings, seed, split, dense, 0, blocks)
        return x[:n], y[:n]
    bounds = [blocks * part // processes for part in range(processes + 1)]
    with spawning():  # the pool starts a process with each of its first jobs
        jobs = [
            pool.submit(_draw_blocks, task.name, settings, seed, split, dense, first, end)
            for first, end in pairwise(bounds)
        ]
    with pool:
        try:
            parts = [job.result() for job in jobs]
        except BrokenProcessPool as error:
            raise WorkerFailed(
                f"a process that drew rows of {task.name} died; draw with fewer, or with one"
            ) from error
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x[:n], y[:n]


def _pool(processes: int) -> ProcessPoolExecutor | None:
    """Return a pool of several processes; None for one process, or without /dev/shm."""
    if processes <= 1:
        return None
    try:
        with spawning():
            return ProcessPoolExecutor(processes, get_context("spawn"), initializer=follow_parent)
    except OSError:
        return None


def _draw_blocks(
    name: str, settings: Settings, seed: int, split: str, dense: bool, first: int, end: int
) -> Rows:
    """Draw whole blocks `first` to `end` (n x BLOCK_ROWS, length), int32; also in a child."""
    task = find(name)
    fixed = draw_fixed(task, settings, seed)
    length = settings.length if split == "train" else settings.test_length
    shape = ((end - first) * BLOCK_ROWS, length)
    x, y = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for number in range(first, end):
        block = slice((number - first) * BLOCK_ROWS, (number - first + 1) * BLOCK_ROWS)
        rng = stream(seed, SPLITS.index(split), number)
        x[block], y[block] = task.draw(
            settings, rng, BLOCK_ROWS, train=split == "train", dense=dense, fixed=fixed
        )
    return x, y


def check(data: Dataset) -> dict[str, list[int]]:
    """Draw a data set again by its own settings and seed.

    Returns:
        the numbers of the rows that differ in any bit, by split; and by name for the common part,
        such as `kv_values`. {} if all are the same.

    Raises:
        DataError: `meta` lacks settings, or names another program or impossible settings; or the
            arrays have other shapes than these settings draw.
    """
    meta, ours = data.meta, f"mlxhog {GENERATOR_VERSION}"
    if "task" not in meta or type(seed := meta.get("seed")) is not int:
        raise DataError("meta lacks the task or the seed, so the rows cannot be drawn again")
    if meta.get("generator") != ours:
        by = meta.get("generator", "an unknown generator")
        raise DataError(f"its rows are by {by}, and only those by {ours} can be drawn again")
    try:
        task = find(str(meta["task"]))
        named = options(task.settings).items()
        values = {name: meta[key] for name, o in named for key in (name, *o.aliases) if key in meta}
        settings = task.settings(**values)
        for split, (x, _) in data.splits().items():
            length = settings.length if split == "train" else settings.test_length
            if x.shape != (shape := (getattr(settings, f"{split}_rows"), length)):
                raise DataError(f"{split} has shape {x.shape}, its settings draw {shape}")
        again = make_task(task.name, seed=seed, **values)
    except ConfigError as error:
        raise DataError(f"meta: {error}") from error
    parts = {name: (getattr(data, name), getattr(again, name)) for name in FIXED_PARTS}
    differ = {name: _differing(a, b) for name, (a, b) in parts.items()}
    other = again.splits()
    for split, (x, y) in data.splits().items():
        rows = zip((x, y), other[split], strict=True)
        differ[split] = sorted({row for a, b in rows for row in _differing(a, b)})
    return {name: rows for name, rows in differ.items() if rows}


def _differing(a: Ints | None, b: Ints | None) -> list[int]:
    """Return the rows in which two arrays differ; row 0 if one is missing or of another shape."""
    if a is None or b is None or a.shape != b.shape:
        return [] if a is b else [0]
    rows: list[int] = np.flatnonzero((a != b).reshape(len(a), -1).any(1)).tolist()
    return rows


__all__ = [
    "BENCHMARK", "BLOCK_ROWS", "DEFAULT_SEED", "GENERATOR_VERSION", "IGNORED", "TASKS_BESIDE",
    "Dataset", "Settings", "TaskType", "check", "find", "make_task", "meta", "register", "resolve",
]  # fmt: skip
