"""One line of `runs.jsonl`: what was run, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from mlxhog.errors import StudyError
from mlxhog.mad.result import RunResult

_NUMBERS = ("acc_token", "acc_macro", "ceiling", "loss", "seconds")
"""Numbers that JSON has no form for when they are not finite; null is read as NaN."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run that ended.

    Attributes:
        key: of the run, see `RunConfig.key`.
        candidate: canonical string of the layers.
        config: of the run, see `RunConfig.to_dict`.
        label: of the setting, such as "baseline" or "vocab=32".
        status: one of `result.STATUSES`, though never "interrupted".
        acc_token: see `RunResult`, as are the next ones.
        params: elements of all parameters of the model.
        state: numbers kept per sequence at the task's length, in all layers.
        reason: why it failed, else "".
        host: where it ran.
        at: when it ended, ISO 8601 in UTC.
    """

    key: str
    candidate: str
    config: Mapping[str, Any]
    label: str
    status: str
    acc_token: float
    acc_macro: float
    val_token: float | None
    val_macro: float | None
    ceiling: float
    loss: float
    steps: int
    seconds: float
    params: int
    state: int
    reason: str
    host: str
    at: str

    @property
    def task(self) -> str:
        """Full name of the task."""
        return str(self.config["task"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Record:
        """Read what `to_dict` wrote.

        Raises:
            StudyError: a field is missing, or there is one more; another version wrote it.
        """
        names = {field.name for field in fields(cls)}
        if wrong := names ^ set(entry):
            raise StudyError(
                f"a record of run {entry.get('key', '?')} and this mlxhog differ in the fields "
                f"{', '.join(sorted(wrong))}; read it with the mlxhog that wrote it"
            )
        empty = {name: math.nan for name in _NUMBERS if entry[name] is None}
        return cls(**{**entry, **empty})


def now() -> str:
    """Return the time as records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def failed(reason: str, *, seconds: float) -> RunResult:
    """Return the result of a run that came to no end of its own."""
    return RunResult(
        status="failed",
        steps=0,
        seconds=seconds,
        loss=math.nan,
        acc_token=0.0,
        acc_macro=0.0,
        reason=reason,
    )
