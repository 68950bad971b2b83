"""Types of a run's JSON files: `run.json`, metrics and times.

A stranger's file, or one that was edited, may have any value anywhere. A file is damaged unless
every field here has its type, so its readers need no checks.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxhog.base import plain_json, reading, typed
from mlxhog.errors import RunError

_MAX_TIME = 1e12  # seconds or microseconds, for more than any step takes
DAMAGED = "damaged"  # status of a run whose `run.json` cannot be read


def check_place(root: Path, name: str) -> None:
    """Raise RunError if no new run can have this name, or if the folder of runs is a file."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise RunError(f"run name {name!r}: use letters, digits, '.', '_' and '-' only")
    if os.path.lexists(root) and not root.is_dir():
        raise RunError(f"{root} is a file, expected a directory of runs")


@dataclass(frozen=True, kw_only=True)
class _UsedWorker:
    backend: str = "?"


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """The result of the newest command, as far as lists of runs show it."""

    steps: int | None = None
    seconds: float | None = None
    tokens_per_s: float | None = None
    val_bits_per_byte: float | None = None
    val_step: int | None = None
    workers: tuple[_UsedWorker, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Subset:
    """The validation subset of evaluations."""

    asked_bytes: int | None = None
    n_bytes: float | None = None
    share: float | None = None
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class CommandRecord:
    """The training of one command: its steps, and its options that differ from the defaults."""

    from_step: int
    to_step: int
    options: Mapping[str, Any]  # without those left at "auto"


@dataclass(frozen=True)
class _AddedText:
    """Text that a resumed run added."""

    step: int
    documents: int
    val_documents: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class BestScore:
    """The best evaluation during training, for comparison with the last one."""

    bits_per_byte: float
    step: int  # that was scored
    text: str = ""  # name of the validation subset
    nats: tuple[float, ...] = ()  # of its batches
    noise: float | None = None  # of the difference to the last evaluation, in bits per byte


@dataclass(frozen=True, kw_only=True)
class _EndRecord:
    """The end of the command before, until the present one has saved a checkpoint."""

    checkpoint: str | None = None
    best: BestScore | None = None
    result: _Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The content of run.json."""

    status: str = "unknown"
    created_ns: int = 0  # since 1970
    order: int = 0  # among the runs of its folder
    host: str | None = None
    error: str | None = None
    model: str | None = None
    data: str | None = None
    data_path: str | None = None
    text_kind: str | None = None
    sample_prompt: str | None = None
    checkpoint: str | None = None
    mlxhog: str | None = None
    machine: str | None = None
    chip: str | None = None
    cores: int | None = None
    memory_bytes: float | None = None
    gpu_write: str | None = None
    kernels: str | None = None
    parameters: float | None = None
    steps: int | None = None
    seconds: float | None = None
    automatic: tuple[str, ...] = ()
    resumed: tuple[int, ...] = ()
    commands: tuple[CommandRecord, ...] = ()
    text_added: tuple[_AddedText, ...] = ()
    validation: _Subset | None = None
    best: BestScore | None = None
    result: _Outcome | None = None
    earlier: _EndRecord | None = None


def read_status(path: Path) -> dict[str, Any]:
    """Return a `run.json`; {} if there is none, and `DAMAGED` with the reason if it is damaged."""
    try:
        record = plain_json.read(path, most=reading.MAX_STATUS_BYTES)
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        status = typed.read(RunStatus, record)
        reached, subset = status.result or _Outcome(), status.validation or _Subset()
        for number in (
            status.created_ns, status.order, status.parameters, status.steps, status.seconds,
            reached.steps, reached.seconds, subset.asked_bytes, subset.share,
        ):  # fmt: skip
            if number is not None and number < 0:
                raise ValueError(f"{number} is below 0")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {"status": DAMAGED, "error": f"{path.name}: {error}; --resume writes it again"}
    return {"status": RunStatus.status, **record}


@dataclass(frozen=True, kw_only=True)
class MetricsLine:
    """Fields that every line of `metrics.jsonl` must have; reports read more."""

    step: int = 0
    elapsed_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WorkerTimes:
    """A worker of `times.json`."""

    slot: int
    backend: str
    steps: int
    compute_us: tuple[float, ...]  # of each gradient, in order
    read_s: float  # medians of the other activities of a step
    apply_s: float
    other_s: float


def worker_times(record: Mapping[str, Any]) -> WorkerTimes:
    """Return a worker of `times.json`; ValueError if it is damaged."""
    times = typed.read(WorkerTimes, record)
    for seconds in (times.read_s, times.apply_s, times.other_s, *times.compute_us):
        if not 0 <= seconds <= _MAX_TIME:
            raise ValueError(f"a time is {seconds:g}; wanted none below 0 or above {_MAX_TIME:g}")
    return times
