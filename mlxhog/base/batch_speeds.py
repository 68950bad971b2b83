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
MOST_ROWS = 100
"""The file forgets the oldest rows."""

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


def load(key: Key) -> tuple[BatchSpeed, ...]:
    """The speeds of such a run on this machine, by growing batch; none if they are not known."""
    rows = _rows(_path())
    speeds = next((speeds for one, speeds in reversed(rows) if one == key), [])
    return tuple(speeds)


def save(key: Key, speeds: Sequence[BatchSpeed]) -> None:
    """Keep speeds for later runs, in the place of those of the same key.

    Raises:
        EnvironmentLacks: the file cannot be written; it is unchanged.
    """
    path = _path()
    rows = [row for row in _rows(path) if row[0] != key]
    rows = [*rows, (key, list(speeds))][-MOST_ROWS:]
    record = {
        "format": FORMAT,
        "identity": asdict(verdicts.identity()),
        "rows": [{"key": one, "speeds": [asdict(s) for s in speeds]} for one, speeds in rows],
    }
    verdicts.keep(path, record)


def _path() -> Path:
    return user_cache_directory() / verdicts.identity().file_of("batches")


def _rows(path: Path) -> list[tuple[Key, list[BatchSpeed]]]:
    """The rows of the file; none if it does not count."""
    try:
        record = plain_json.read(path)
        if (record["format"], record["identity"]) != (FORMAT, asdict(verdicts.identity())):
            return []
        rows: list[tuple[Key, list[BatchSpeed]]] = [
            (dict(row["key"]), [typed.read(BatchSpeed, one) for one in row["speeds"]])
            for row in record["rows"]
        ]
        every = [speed for _, speeds in rows for speed in speeds]
        return rows if all(min(s.tokens_per_s, s.gradient_s) > 0 for s in every) else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
