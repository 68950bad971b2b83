"""A study directory: the definition of a study and all its results.

studies/<name>/
  lock                held by a running scheduler; has the id of its process
  study.yaml          the definition of the study, see `study`; written once
  candidates.jsonl    the proposals of the sampler and their scores, in order
  runs.jsonl          one line per run that ended, see `StudyRecord`
  curves/<key>.jsonl  evaluations of such a run

A kill loses at most the runs in progress: every line is flushed to the disk at once, and the rest
of a torn one is ignored. Any process may read at any time.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mlxhog.base import durable, plain_json, plain_yaml, reading, typed
from mlxhog.base.durable import append_lines, disk_errors, replace_file
from mlxhog.base.paths import expanded
from mlxhog.errors import StudyError, did_you_mean
from mlxhog.mad.run import Point, RunConfig, RunResult, run_title, state
from mlxhog.models import families

ROOT = Path("studies")
DEFINITION = "study.yaml"


@dataclass(frozen=True, kw_only=True)
class StudyRecord(RunResult):
    """A run that ended: its result, without the curve, and its plan."""

    key: str  # of the run, see `RunConfig.key`
    candidate: str  # canonical string of the layers
    config: Mapping[str, Any]  # of the run, see `RunConfig.to_dict`
    label: str  # of the setting, such as "baseline" or "vocab=32"
    params: int  # elements of all parameters of the model
    state: int  # numbers kept per sequence at the task's length, in all layers
    host: str  # name of its machine
    at: str  # its end, ISO 8601 in UTC

    @classmethod
    def of(cls, run: RunConfig, result: RunResult, host: str) -> StudyRecord:
        """Return the record of a run that ends now."""
        model = run.model()
        return cls(
            key=run.key(),
            candidate=run.candidate,
            config=run.to_dict(),
            label=run.label,
            params=families.param_count(model),
            state=state(run.layers, run.dim, model.max_length),
            host=host,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            **{**vars(result), "curve": ()},
        )

    @property
    def task(self) -> str:
        """Full name of the task."""
        return str(self.config["task"])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config["seed"])

    @property
    def title(self) -> str:
        """Name of the run within its candidate."""
        return run_title(self.task, self.label, self.config["protocol"], self.seed)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A line of `candidates.jsonl`: a candidate of the sampler, or its score when it ended."""

    candidate: str
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The parts of a record's `config` that readers use."""

    task: str
    seed: int
    dim: int
    layers: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    protocol: Mapping[str, float | str | bool | None]


Line = TypeVar("Line", StudyRecord, Point, Proposal)


class Store:
    """One study directory; see `create` and `find`.

    Concurrency: the holder of `lock` writes, any number of processes read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._runs, self._proposals = directory / "runs.jsonl", directory / "candidates.jsonl"

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.name

    # -- the lock --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the study; the kernel frees it if the holder dies.

        Raises:
            StudyError: another process holds it; the message names its id.
        """

        def refusal(why: str) -> StudyError:
            return StudyError(f"the study {self.directory} {why}, or give another --study")

        with durable.lock(self.directory, refusal):
            yield

    def is_locked(self) -> bool:
        """Whether a scheduler works on the study."""
        return durable.is_locked(self.directory)

    # -- the definition --------------------------------------------------------------------------

    def definition(self) -> dict[str, Any]:
        """Return the values of `study.yaml`; StudyError if it cannot be read."""
        path = self.directory / DEFINITION
        try:
            values = plain_yaml.loads(reading.read_text(path))
        except (OSError, ValueError) as error:
            raise StudyError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise StudyError(f"{path} does not define a study; give another --study")
        return values

    # -- runs ------------------------------------------------------------------------------------

    def _read(self, cls: type[Line], path: Path) -> list[Line]:
        """Return the whole lines of a file, in order; [] if it does not exist."""
        lines: list[Line] = []
        try:
            for entry in plain_json.objects(path):
                line = typed.read(cls, entry)
                if isinstance(line, StudyRecord):
                    typed.read(_Config, line.config)
                lines.append(line)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise StudyError(
                f"{path}, line {len(lines) + 1} is damaged ({error}); remove the line, and resume "
                "the study to repeat its run"
            ) from error
        return lines

    def records(self) -> list[StudyRecord]:
        """Return the runs that ended, in order; of a repeated run the last record.

        Raises:
            StudyError: a line is damaged.
        """
        records: dict[str, StudyRecord] = {}
        for record in self._read(StudyRecord, self._runs):
            records.pop(record.key, None)
            records[record.key] = record
        return list(records.values())

    def append(self, record: StudyRecord, curve: Iterable[Point] = ()) -> None:
        """Append a run that ended, after its curve.

        Raises:
            EnvironmentLacks: the disk is full, or the system refuses; earlier lines are intact.
        """
        points = [_line(asdict(point)) for point in curve]
        if points:
            path = self._curve_path(record.key)
            with disk_errors(f"writing {path}"):
                path.parent.mkdir(exist_ok=True)
                replace_file(path, b"".join(points))
        values = asdict(record)
        del values["curve"]
        line = _line({"key": values.pop("key"), **values})
        append_lines(self._runs, line, synced=True)

    def curve(self, key: str) -> list[Point]:
        """Return the evaluations of a run that ended; StudyError if a line is damaged."""
        return self._read(Point, self._curve_path(key))

    def _curve_path(self, key: str) -> Path:
        return self.directory / "curves" / f"{Path(key).name}.jsonl"

    # -- candidates ------------------------------------------------------------------------------

    def proposals(self) -> list[Proposal]:
        """Return the lines of `add_proposal` in order; StudyError if one is damaged."""
        return self._read(Proposal, self._proposals)

    def add_proposal(self, candidate: str, score: float | None = None) -> None:
        """Append a proposal of the sampler, or its score.

        Raises:
            EnvironmentLacks: the disk is full, or the system refuses.
        """
        entry = {"candidate": candidate, "score": score}
        line = _line({name: value for name, value in entry.items() if value is not None})
        append_lines(self._proposals, line, synced=True)


def create(root: Path, name: str, definition: Mapping[str, Any]) -> Store:
    """Make a study directory with its `study.yaml`.

    Raises:
        StudyError: the name has characters other than letters, digits, `.`, `_` and `-`, the
            directory cannot be created, or the study exists.
    """
    check_name(name)
    directory = (root / name).absolute()
    if is_study(directory):
        raise StudyError(f"the study {directory} exists; give another --study")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot create {directory}: {error.strerror}; choose --out") from error
    text = yaml.safe_dump(
        json.loads(plain_json.dumps(definition)), sort_keys=False, allow_unicode=True
    )
    with disk_errors(f"writing {directory / DEFINITION}"):
        replace_file(directory / DEFINITION, text.encode())
    return Store(directory)


def check_name(name: str) -> None:
    """Raise a StudyError for a name that is not a plain directory name."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
        raise StudyError(
            f"study name {name!r}: use letters, digits, '.', '_' and '-' only, 100 at most"
        )


def is_study(directory: Path) -> bool:
    """Whether a directory is a study."""
    return (directory / DEFINITION).is_file()


def find(spec: str, root: Path = ROOT) -> Store:
    """Return a study by its name below `root`, or by its path.

    Raises:
        StudyError: it does not exist; the message suggests the nearest name.
    """
    for path in (root / spec, expanded(spec)):
        if is_study(path):
            return Store(path.absolute())
    names = [path.name for path in root.iterdir() if is_study(path)] if root.is_dir() else []
    hint = did_you_mean(spec, names) or (
        f"; {root} holds {', '.join(sorted(names))}"
        if names
        else f"; {root} holds none, begin one with: mlxhog mad search --study {spec}"
    )
    raise StudyError(f"no study {spec!r}{hint}")


def _line(entry: Mapping[str, Any]) -> bytes:
    return plain_json.dumps(entry) + b"\n"
