"""A study directory: the definition of a study and all its results.

studies/<name>/
  lock, holder.json   held by a running scheduler, see `locks`
  study.yaml          the definition, see `StudyDefinition`; written once
  candidates.jsonl    the proposals of the sampler and their scores, in order
  runs.jsonl          one line per run that ended, see `CandidateRecord`
  curves/<key>.jsonl  evaluations of such a run
  tables.safetensors  shared embeddings after the last run, with --share-embedding
  running/            of suite lm: folders of the runs in progress; each session empties it
  final.json, final/  of suite lm: the comparison of the first two candidates, and its pairs

A kill loses at most the runs in progress: every line is flushed to the disk at once, and the rest
of a torn one is ignored. Any process may read at any time.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mlxhog.arena.published import Float32
from mlxhog.base import locks, mapped, plain_json, plain_yaml, reading, tensors, typed
from mlxhog.base.durable import append_lines, disk_errors, remove, replace_file
from mlxhog.base.inside import refuse_links, subfolder
from mlxhog.base.paths import expanded, path_from_here, quoted
from mlxhog.config.plugins import recalled, same_files
from mlxhog.errors import CheckpointError, ConfigError, StudyError, did_you_mean
from mlxhog.mad.options import Recipe
from mlxhog.mad.run import CandidateRecord, EvalPoint
from mlxhog.mad.study.definition import STAMP, StudyDefinition

ROOT = Path("studies")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A line of `candidates.jsonl`: a candidate of the sampler, or its score when it ended."""

    candidate: str
    score: float | None = None


Line = TypeVar("Line", CandidateRecord, EvalPoint, Proposal)


class Store:
    """One study directory; see `open_store` and `find`.

    Readers raise a StudyError for a damaged file, writers EnvironmentLacks if the disk is full or
    the system refuses; earlier lines are intact.

    Concurrency: the holder of `lock` writes, any number of processes read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.name = directory, directory.name
        self.definition = directory / "study.yaml"
        self._tables, self.running = directory / "tables.safetensors", directory / "running"
        self._runs, self._proposals = directory / "runs.jsonl", directory / "candidates.jsonl"

    @property
    def word(self) -> str:
        """The study as commands take it, without `--studies-dir`; quoted for a shell."""
        if self.directory.parent.absolute() == ROOT.absolute():
            return quoted(self.name)
        return quoted(path_from_here(self.directory))

    @property
    def exists(self) -> bool:
        """Whether the directory is a study."""
        return os.path.isfile(self.definition)  # false also for a name that no file can have

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the study in a block; the kernel frees it if the holder dies.

        Raises:
            StudyError: another process holds it (the message names its id), or `refuse_links`.
        """
        return locks.lock(self.directory, self._refusal)

    def refuse_links(self) -> None:
        """Raise StudyError, with the link, if writing in the study could change files elsewhere."""
        refuse_links(self.directory, self._refusal)

    def _refusal(self, why: str) -> StudyError:
        return StudyError(f"the study {self.directory} {why}, or give another --study")

    def clear_running(self) -> None:
        """Create the folder of runs in progress, without those that a killed session left."""
        with disk_errors(f"making {self.running}"):
            remove(self.running)
            subfolder(self.directory, self.running.name)

    def is_locked(self) -> bool:
        """Whether a scheduler works on the study."""
        return locks.is_locked(self.directory)

    # -- the definition --------------------------------------------------------------------------

    def study(self) -> StudyDefinition:
        """Return the definition; the user's layers and tasks are loaded from their files.

        Raises:
            StudyError: it cannot be read, another version made it, it was changed, or the file of a
                layer or task may not be loaded.
        """
        try:
            definition = dict(plain_yaml.loads(reading.read_text(self.definition)))
            theirs = {name: definition.get(name) for name in STAMP}
            if theirs != STAMP:
                made, ours = (", ".join(f"{n} {v}" for n, v in d.items()) for d in (theirs, STAMP))
                raise StudyError(
                    f"{self.directory} was made by {made}, this is {ours}: its runs would not "
                    "compare; continue with the version that made it, or give another --study"
                )
            study = typed.read(StudyDefinition, definition)
            study.check_stored()
            Recipe(**study.recipe)
        except (ConfigError, OSError, TypeError, ValueError) as error:
            raise StudyError(
                f"{self.definition}: {error}; mlxhog writes this file, which is not to be "
                "edited: give another --study"
            ) from error
        try:
            recalled(study.plugin, lambda: study.parts, lambda parts: parts)
        except ConfigError as error:
            raise StudyError(f"study {self.name}: {error}") from error
        return study

    def refuse_other_files(self, study: StudyDefinition) -> None:
        """Raise a StudyError if runs with these versions of the user's files would not compare."""
        began = self.study().plugin
        if began and not same_files(began, study.plugin):
            files = ", ".join(text.partition(" sha256:")[0] for text in study.plugin)
            raise StudyError(
                f"the runs of study {self.name} were made with another version of {files}; restore "
                "the file, or begin another study with --study"
            )

    def tables(self) -> dict[str, Float32] | None:
        """Return the shared embeddings as the runs so far left them; None before the first run.

        Raises:
            StudyError: they are missing or damaged, so later scores would not compare.
        """
        if not self._runs.exists():
            return None
        try:
            views = tensors.read(self._tables)
            return {name: mapped.in_memory(view) for name, view in views.items()}
        except CheckpointError as error:
            raise StudyError(
                f"the runs of study {self.name} had a shared embedding that is lost, so those to "
                f"come would not compare: {error}; or begin another study with --study"
            ) from error

    def keep_tables(self, tables: Mapping[str, Float32]) -> None:
        """Replace the shared embeddings, before a run is recorded that has changed them."""
        with disk_errors(f"writing {self._tables}"):
            part = self._tables.with_suffix(".part")
            tensors.write(part, tables)
            os.replace(part, self._tables)

    def final(self) -> dict[str, Any] | None:
        """Return the comparison of the first two candidates; None before its end."""
        path = self.directory / "final.json"
        try:
            return dict(plain_json.read(path)) if path.exists() else None
        except (OSError, ValueError) as error:
            raise StudyError(f"{path} is damaged ({error}); remove it, and resume") from error

    def keep_final(self, final: Mapping[str, Any]) -> None:
        """Write the comparison of the first two candidates."""
        path = self.directory / "final.json"
        with disk_errors(f"writing {path}"):
            replace_file(path, plain_json.dumps(final, indent=1) + b"\n")

    # -- lines -----------------------------------------------------------------------------------

    def records(self) -> list[CandidateRecord]:
        """Return the runs that ended, in order; of a repeated run the last record."""
        records: dict[str, CandidateRecord] = {}
        for record in _read(CandidateRecord, self._runs):
            records.pop(record.key, None)
            records[record.key] = record
        return list(records.values())

    def append(self, record: CandidateRecord) -> None:
        """Append a run that ended, after its curve."""
        if record.curve:
            path = self._curve_path(record.key)
            with disk_errors(f"writing {path}"):
                subfolder(self.directory, path.parent.name)
                replace_file(path, b"".join(_line(asdict(point)) for point in record.curve))
        values = {"key": record.key, **asdict(record)}
        del values["curve"]
        append_lines(self._runs, _line(values), synced=True)

    def curve(self, key: str) -> list[EvalPoint]:
        """Return the evaluations of a run that ended."""
        return _read(EvalPoint, self._curve_path(key))

    def _curve_path(self, key: str) -> Path:
        return self.directory / "curves" / f"{key}.jsonl"

    def proposals(self) -> list[Proposal]:
        """Return the lines of `add_proposal` in order."""
        return _read(Proposal, self._proposals)

    def add_proposal(self, candidate: str, score: float | None = None) -> None:
        """Append a proposal of the sampler, or its score."""
        line = {"candidate": candidate} | ({} if score is None else {"score": score})
        append_lines(self._proposals, _line(line), synced=True)


def _line(entry: Mapping[str, Any]) -> bytes:
    return plain_json.dumps(entry) + b"\n"


def _read(cls: type[Line], path: Path) -> list[Line]:
    """Return the whole lines of a file, in order; [] if it does not exist."""
    lines: list[Line] = []
    try:
        for entry in plain_json.objects(path):
            line = typed.read(cls, entry)
            if isinstance(line, CandidateRecord):
                line.check()
            lines.append(line)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{path}, line {len(lines) + 1} is damaged ({error}); remove the line, and resume "
            "the study to repeat its run"
        ) from error
    return lines


# -- studies by their names ------------------------------------------------------------------------


def find(spec: str, root: Path = ROOT) -> Store:
    """Return a study by its name below `root`, or by its path.

    Raises:
        StudyError: it does not exist; the message suggests the nearest name.
    """
    for path in (root / spec, expanded(spec)):
        if (store := Store(path.absolute())).exists:
            return store
    names = sorted(path.name for path in root.glob("*") if Store(path).exists)
    others = f"holds {', '.join(names)}" if names else "holds none"
    begin = f"; {root} {others}, begin one with: mlxhog mad search --study {quoted(spec)}"
    raise StudyError(f"no study {spec!r}{did_you_mean(spec, names) or begin}")


def store_of(study: StudyDefinition, root: str | Path, name: str) -> Store:
    """Return the store of a study, which may not exist yet.

    Raises:
        StudyError: another study has that name (every difference is named, and the ways out), or
            the name is impossible.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
        raise StudyError(
            f"study name {name!r}: use letters, digits, '.', '_' and '-' only, 100 at most"
        )
    store = Store(Path(root).absolute() / name)
    if not store.exists:
        return store
    store.refuse_links()
    store.refuse_other_files(study)
    stored = asdict(replace(store.study(), plugin=study.plugin))  # wherever the files lie
    differences = [
        f"  {name}: it has {_short(stored[name])}, the command {_short(value)}"
        for name, value in asdict(study).items()
        if stored[name] != value
    ]
    if differences:
        raise StudyError(
            f"{store.directory} holds another study:\n"
            + "\n".join(differences)
            + f"\ngive another --study, or continue it unchanged: mlxhog mad resume {store.word}"
        )
    return store


def open_store(study: StudyDefinition, root: str | Path, name: str) -> Store:
    """Return the store of a study, created if it does not exist; raises as `store_of`."""
    store = store_of(study, root, name)
    if not store.exists:
        plain = json.loads(plain_json.dumps(study.to_dict()))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        with disk_errors(f"writing {store.definition}"):
            store.directory.mkdir(parents=True, exist_ok=True)
            with store.lock():  # of two that begin it at once, the second one compares
                if not store_of(study, root, name).exists:
                    replace_file(store.definition, text.encode())
    return store


def _short(value: object) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    text = "nothing" if value in ("", None, [], {}, ()) else text
    return text if len(text) <= 100 else text[:98] + ".."
