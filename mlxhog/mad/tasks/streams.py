"""Random streams of rows: a block of rows has its own, whoever draws it and in which order."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from multiprocessing import get_context

import numpy as np

from mlxhog.errors import WorkerFailed
from mlxhog.machine.processes import follow_parent, spawning
from mlxhog.mad.tasks.settings import Settings
from mlxhog.mad.tasks.task import Fixed, Rows, TaskType

BLOCK_ROWS = 256
"""Rows of one stream; another number, other rows."""

SPLITS = ("train", "test", "val")
_FIXED = len(SPLITS)


def stream(seed: int, *branch: int) -> np.random.Generator:
    """Return the generator at a branch of the tree of streams below a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=branch))


def draw_fixed(task: TaskType, settings: Settings, seed: int) -> Fixed:
    """Draw what all rows have in common; it depends on the seed and the settings alone."""
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
    """Draw n rows of a split; the same for any number of processes, and for a smaller n fewer.

    `dense` is said of targets, see `Draw`.

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
    """Return a pool of several processes; None for one, or where their queue finds no /dev/shm."""
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
    from mlxhog.mad.tasks import TASKS

    task = TASKS[name]
    fixed = draw_fixed(task, settings, seed)
    shape = ((end - first) * BLOCK_ROWS, settings.length)
    x, y = np.empty(shape, np.int32), np.empty(shape, np.int32)
    for number in range(first, end):
        here = slice((number - first) * BLOCK_ROWS, (number - first + 1) * BLOCK_ROWS)
        rng = stream(seed, SPLITS.index(split), number)
        x[here], y[here] = task.draw(
            settings, rng, BLOCK_ROWS, train=split == "train", dense=dense, fixed=fixed
        )
    return x, y
