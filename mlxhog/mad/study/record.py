"""One line of `runs.jsonl`: what was run, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxhog.config.limits import shown
from mlxhog.errors import StudyError
from mlxhog.mad.run import STATUSES, RunResult

_NUMBERS = ("acc_token", "acc_macro", "ceiling", "loss", "seconds")
"""Numbers that JSON has no form for when they are not finite; null is read as NaN."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_config(value: object) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("settings"), Mapping):
        return False
    protocol = value.get("protocol")
    return (
        _is_text(value.get("task"))
        and _is_count(value.get("seed"))
        and isinstance(protocol, Mapping)
        and all(isinstance(protocol.get(name), int | float) for name in ("lr", "weight_decay"))
    )


_KINDS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("candidate", "label", "reason", "host", "at"), _is_text),
    **dict.fromkeys(("steps", "params", "state"), _is_count),
    **dict.fromkeys((*_NUMBERS, "val_token", "val_macro"), _is_number),
    "config": _is_config,
    "status": STATUSES.__contains__,
    "key": lambda value: isinstance(value, str) and Path(value).name == value,
}
"""What each field has to be: whoever edited the file may have written anything."""


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
        if wrong := names ^ entry.keys():
            raise StudyError(
                f"a record of run {shown(entry.get('key', '?'))} and this mlxhog differ in the "
                f"fields {', '.join(sorted(wrong))}; read it with the mlxhog that wrote it"
            )
        if wrong_types := [name for name, kind in _KINDS.items() if not kind(entry[name])]:
            name = wrong_types[0]
            raise StudyError(
                f"a record of run {shown(entry['key'])} has {name} {shown(entry[name])}, which no "
                "mlxhog writes; remove its line, and resume the study to run it again"
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


def seconds_used(records: Iterable[Record]) -> float:
    """Return the time during which any of some runs was in progress."""
    spans = []
    for record in records:
        end = datetime.fromisoformat(record.at).timestamp()
        spans.append((end - record.seconds, end))
    used, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        used += max(0.0, end - max(begin, until))
        until = max(until, end)
    return used


def by_candidate(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records, candidates in the order of their first record."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.candidate, []).append(record)
    return groups
