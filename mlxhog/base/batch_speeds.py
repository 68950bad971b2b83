"""Tokens per second by batch, as measured on this machine: a file beside the record of doctor.

    ~/Library/Caches/mlxhog/batches-<chip>-<system>-<mlx>.json         macOS
    $XDG_CACHE_HOME/mlxhog/batches-<chip>-<system>-<mlx>.json          Linux

Like the record it holds for one identity, a machine and the versions in use. It has a row for each
kind of run: model, context and workers. A file that is damaged, or of another identity, counts as
absent, so runs measure again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlxhog.base import plain_json, typed, verdicts
from mlxhog.base.cache import user_cache_directory

FORMAT = 1
MOST_ROWS = 100  # the file forgets the oldest rows

Key = Mapping[str, Any]
"""What the speeds of a run depend on beside machine and versions, as JSON has it."""


@dataclass(frozen=True)
class BatchSpeed:
    """The speed of a run's workers, all at the same time, with one batch.

    Attributes:
        sequences: of the batch.
        tokens_per_s: of all workers together, gradients alone.
        error: standard error of that, as a share of it.
        gradient_s: time of a gradient of the slowest worker.
    """

    sequences: int
    tokens_per_s: float
    error: float
    gradient_s: float


@dataclass(frozen=True)
class _Row:
    key: Any
    speeds: tuple[BatchSpeed, ...]


@dataclass(frozen=True)
class _File:
    format: int
    identity: verdicts.Identity
    rows: tuple[_Row, ...]


def load(key: Key) -> tuple[BatchSpeed, ...]:
    """The speeds of such a run on this machine, by growing batch; none if they are not known."""
    return next((row.speeds for row in reversed(_rows()) if row.key == key), ())


def save(key: Key, speeds: Sequence[BatchSpeed]) -> None:
    """Keep speeds for later runs, in the place of those of the same key.

    Raises:
        EnvironmentLacks: the file cannot be written; it is unchanged.
    """
    rows = [row for row in _rows() if row.key != key]
    rows = [*rows, _Row(dict(key), tuple(speeds))][-MOST_ROWS:]
    verdicts.keep(_path(), asdict(_File(FORMAT, verdicts.identity(), tuple(rows))))


def _path() -> Path:
    return user_cache_directory() / verdicts.identity().file_of("batches")


def _rows() -> tuple[_Row, ...]:
    """The rows of the file; none if it does not count."""
    try:
        file = typed.read(_File, dict(plain_json.read(_path())))
    except (OSError, ValueError, TypeError):
        return ()
    every = [speed for row in file.rows for speed in row.speeds]
    known = (file.format, file.identity) == (FORMAT, verdicts.identity())
    return file.rows if known and all(min(s.tokens_per_s, s.gradient_s) > 0 for s in every) else ()
