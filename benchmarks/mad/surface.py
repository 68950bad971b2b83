"""A recorded surface: the runs of all candidates of one space, so that a search needs no training.

A surface is a finished study in one small file, xz over JSON: `study`, its definition; `generator`,
the version of the tasks' generators; `commit` and `machine`; and `candidates`, canonical string ->
its runs in the order of `StudyDefinition.runs`, each [status, accuracy, seconds, steps, ...].
"""

import json
import lzma
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

import numpy as np
from harness.machine import commit, machine

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.mad.run import CandidateRecord
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.tasks import GENERATOR_VERSION, find
from mlxhog.models.layers import at_width
from mlxhog.models.mad.sequence import parse

DIGITS = 4
AGAIN = "record one with python benchmarks/samplers.py --record"


@dataclass(frozen=True)
class Surface:
    """All candidates of a space with their records, in the order of `StudyDefinition.runs`."""

    study: StudyDefinition
    runs: dict[str, list[CandidateRecord]]

    @cached_property
    def layers(self):
        """Candidate -> its layers, as samplers propose them."""
        dim = self.study.measured.dim
        return {candidate: at_width(parse(candidate), dim) for candidate in self.runs}

    def sampler(self, name, seed):
        """A sampler of this space in its initial state."""
        return replace(self.study, sampler=name, sampler_seed=seed).new_sampler()

    def only(self, tasks):
        """The surface of some of its tasks, by their full or short names."""
        tasks = tuple(find(task).name for task in tasks)
        if missing := set(tasks) - {run.task for own in self.runs.values() for run in own}:
            raise SystemExit(f"the surface has no task {min(missing)}")
        runs = {name: [run for run in own if run.task in tasks] for name, own in self.runs.items()}
        return Surface(replace(self.study, tasks=tasks), runs)

    def scores(self):
        """The scores that a search of each seed sees, (seeds, candidates)."""
        rows = []
        for seed in self.study.seeds:
            judge = replace(self.study, seeds=(seed,)).score_of
            own = ([run for run in runs if run.seed == seed] for runs in self.runs.values())
            rows.append([judge(records).selection_score for records in own])
        return np.array(rows)


def write(store, path):
    """Write a finished study as a surface."""
    study = store.study()
    records = {record.key: record for record in store.records()}
    candidates = {}
    for candidate in sorted({record.candidate for record in records.values()}):
        own = [records.get(run.key()) for run in study.runs(candidate)]
        if None in own:
            raise SystemExit(f"study {store.name} lacks runs; the same command continues")
        candidates[candidate] = [
            [one.status, round(one.acc_macro, DIGITS), round(one.seconds, 2), one.steps, one.state]
            for one in own
        ]
    content = {
        "generator": GENERATOR_VERSION, "commit": commit(), "machine": machine(),
        "study": asdict(study), "candidates": candidates,
    }  # fmt: skip
    replace_file(path, lzma.compress(plain_json.dumps(content), preset=9 | lzma.PRESET_EXTREME))


def load(path):
    """Read a surface.

    Raises:
        SystemExit: it was recorded on another version of the tasks' generators.
    """
    content = json.loads(lzma.decompress(path.read_bytes()))
    if content["generator"] != GENERATOR_VERSION:
        raise SystemExit(f"{path} is of other generators of tasks; {AGAIN}")
    values = content["study"]
    budget = values["space"].get("budget", {})  # an earlier version wrote limits that it had not
    values["space"]["budget"] = {name: most for name, most in budget.items() if most}
    # a surface may have a field of an earlier version
    names = {field.name for field in fields(StudyDefinition)}
    study = StudyDefinition(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
    )
    runs = {
        candidate: list(map(_record, study.runs(candidate), packed))
        for candidate, packed in content["candidates"].items()
    }
    return Surface(study, runs)


def _record(planned, packed):
    status, accuracy, seconds, steps, state, *_ = packed
    return CandidateRecord(
        key=planned.key(), candidate=planned.candidate, config=planned.to_dict(),
        label=planned.label, status=status, acc_token=accuracy, acc_macro=accuracy, steps=steps,
        seconds=seconds, params=0, state=state, host="", at="",
    )  # fmt: skip
