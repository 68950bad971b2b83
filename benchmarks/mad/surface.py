"""A recorded surface: the runs of all candidates of one space, so that a search needs no training.

A surface is a finished study in one small file, xz over JSON:

    format       `FORMAT` of this file
    digest       SHA-256 of everything else, as JSON with sorted keys
    mlxhog, commit, machine     the recording
    generator    version of the tasks' generators
    study        its definition, `Study`
    suite        the settings, points and protocol as they were, `Suite`
    candidates   canonical string -> its runs in the order of `Planning.runs`, each
                 [status, accuracy, seconds, steps, state, steps of the curve, accuracies there]

Accuracies are rounded to four digits. A curve keeps no times: a run's seconds count evenly over its
steps.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from harness.machine import commit, machine

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.errors import StudyError
from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.study.study import Study, read
from mlxhog.mad.tasks import GENERATOR_VERSION, find
from mlxhog.models.mad.layers import at_width
from mlxhog.models.mad.sequence import parse

FORMAT = 1
DIGITS = 4
MOST_BYTES = 64 << 20
"""Of the JSON of a surface: `write` makes no larger file."""
AGAIN = "record one with python benchmarks/mad_bench.py surface"


@dataclass(frozen=True)
class RecordedRun:
    """A run that ended, with its plan and its evaluations."""

    planned: RunConfig
    record: StudyRecord
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Surface:
    """All candidates of a space with their runs.

    Attributes:
        study: the recorded one.
        runs: candidate -> its runs, in the order of `Planning.runs`.
        facts: the version, commit, machine and digest of the recording.
    """

    study: Study
    runs: Mapping[str, tuple[RecordedRun, ...]]
    facts: Mapping[str, Any]

    @property
    def seeds(self):
        """Seeds of the runs of each candidate."""
        return self.study.seeds

    @cached_property
    def tasks(self):
        """Full names of the recorded tasks."""
        return tuple(dict.fromkeys(one.task for one in self.study.measured().settings))

    @cached_property
    def layers(self):
        """Candidate -> its layers, as samplers propose them."""
        dim = Planning(self.study).dim
        return {candidate: at_width(parse(candidate), dim) for candidate in self.runs}

    def planning(self, *, sampler, sampler_seed):
        """Return the plan of a search of this space."""
        return Planning(replace(self.study, sampler=sampler, sampler_seed=sampler_seed))

    def only(self, tasks):
        """Return the surface of some of its tasks, by their full or short names.

        Raises:
            ConfigError: no such task.
            StudyError: a task was not recorded.
        """
        tasks = tuple(find(task).name for task in tasks)
        if missing := set(tasks) - set(self.tasks):
            raise StudyError(
                f"the surface has no task {min(missing)!r}; it has {', '.join(self.tasks)}"
            )
        runs = {
            candidate: tuple(run for run in own if run.record.task in tasks)
            for candidate, own in self.runs.items()
        }
        return Surface(replace(self.study, tasks=tasks), runs, self.facts)

    def scores(self):
        """Return the scores that a search of each seed sees, (seeds, candidates)."""
        rows = []
        for seed in self.seeds:
            judge = Planning(replace(self.study, seeds=(seed,))).judge
            runs = [[run.record for run in own] for own in self.runs.values()]
            rows.append([judge([one for one in own if one.seed == seed]).score for own in runs])
        return np.array(rows)


# -- writing ---------------------------------------------------------------------------------------


def write(store, path):
    """Write a finished study as a surface; return the bytes of the file.

    Raises:
        StudyError: runs are missing.
    """
    study = read(store)
    planning = Planning(study)
    records = {record.key: record for record in store.records()}
    candidates = {}
    for candidate in sorted({record.candidate for record in records.values()}):
        runs = [(records.get(run.key()), run) for run in planning.runs(candidate)]
        candidates[candidate] = [_packed(record, store) for record, _ in runs if record]
    ended = sum(map(len, candidates.values()))
    if planning.total is not None and ended < planning.total:
        raise StudyError(
            f"study {store.name} has {ended} of {planning.total} runs; the same command continues"
        )
    content = {
        "format": FORMAT,
        "mlxhog": study.to_dict()["mlxhog"],
        "generator": GENERATOR_VERSION,
        "commit": commit(),
        "machine": {name: machine()[name] for name in ("cpu", "cores")},
        "study": asdict(study),
        "suite": asdict(planning.suite),
        "candidates": candidates,
    }
    plain = plain_json.loads(plain_json.dumps(content))
    text = plain_json.dumps({"digest": _digest(plain), **plain})
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    replace_file(path, packed)
    return len(packed)


def _packed(record, store):
    curve = store.curve(record.key)
    return [
        record.status,
        round(record.acc_macro, DIGITS),
        round(record.seconds, 2),
        record.steps,
        record.state,
        [point.step for point in curve],
        [round(point.acc_macro, DIGITS) for point in curve],
    ]


def _digest(content):
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# -- reading ---------------------------------------------------------------------------------------


def load(path):
    """Read a surface.

    Raises:
        StudyError: it cannot be read, was edited, or was recorded on another version of the file,
            of the tasks' generators or of the suite.
    """
    content = _content(path)
    for name, what, ours in (
        ("format", "format", FORMAT),
        ("generator", "version of the tasks' generators", GENERATOR_VERSION),
    ):
        if content.get(name) != ours:
            raise StudyError(
                f"{path} has {what} {content.get(name)!r}, this program {ours!r}; {AGAIN}"
            )
    if content.pop("digest", None) != _digest(content):
        raise StudyError(f"{path} was edited: its content does not have its digest; {AGAIN}")
    values = content["study"]
    values["space"]["budget"].pop("rescale", None)  # of an earlier version, and not used
    names = {field.name for field in fields(Study)}  # a surface may have one of an earlier version
    study = Study(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
    )
    planning = Planning(study)
    ours = plain_json.loads(plain_json.dumps(asdict(planning.suite)))
    if different := [name for name, value in ours.items() if content["suite"].get(name) != value]:
        raise StudyError(
            f"{path} was recorded on another suite {study.suite}: its {', '.join(different)} "
            f"differ from this program's; {AGAIN}"
        )
    runs = {
        candidate: tuple(map(_run, planning.runs(candidate), packed))
        for candidate, packed in content["candidates"].items()
    }
    facts = {name: content[name] for name in ("mlxhog", "commit", "machine")}
    return Surface(study, runs, facts)


def _content(path):
    try:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        text = decompressor.decompress(path.read_bytes(), MOST_BYTES)
        content = plain_json.loads(text, strict=False) if decompressor.eof else None
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}; {AGAIN}") from error
    except (ValueError, lzma.LZMAError) as error:
        raise StudyError(f"{path} cannot be read as a surface: {error}; {AGAIN}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} is not a surface; {AGAIN}")
    return content


def _run(planned, packed):
    status, accuracy, seconds, steps, state, at, accuracies = packed
    per_step = seconds / max(1, steps)
    curve = tuple(
        Point(step=step, seconds=step * per_step, loss=0.0, acc_token=0.0, acc_macro=value)
        for step, value in zip(at, accuracies, strict=True)
    )
    record = StudyRecord(
        key=planned.key(),
        candidate=planned.candidate,
        config=planned.to_dict(),
        label=planned.label,
        status=status,
        acc_token=accuracy,
        acc_macro=accuracy,
        val_token=None,
        val_macro=None,
        ceiling=1.0,
        loss=0.0,
        steps=steps,
        seconds=seconds,
        params=0,
        state=state,
        reason="",
        host="",
        at="",
    )
    return RecordedRun(planned, record, curve)
