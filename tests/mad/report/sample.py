"""Studies made by hand, with known numbers of a report."""

import functools
from dataclasses import replace

from mlxhog.mad.run import CandidateRecord, EvalPoint
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import open_store

CONV, CHANNELS, MIXED = CANDIDATES = "gated-conv swiglu", "swiglu swiglu", "swiglu gated-conv"
SEEDS = (0, 1, 2)
STUDY = StudyDefinition(candidates=CANDIDATES, seeds=SEEDS)  # of suite smoke
TASKS = tuple(dict.fromkeys(setting.task for setting in STUDY.measured.task_configs))
STATE = {CONV: 256, CHANNELS: 0, MIXED: 128}
WORTH = {CONV: 0.9, CHANNELS: 0.3, MIXED: 0.6}
RECORD = CandidateRecord(
    status="done", steps=200, seconds=10.0, loss=1.2, acc_token=0.45, acc_macro=0.5,
    key="", candidate="", config={}, label="", params=1000, state=0, host="here",
    at="2026-01-02T03:04:05.000+00:00",
)  # fmt: skip


@functools.cache
def runs():
    """Every run of the study, done; scores of seeds differ by 0.01 around a candidate's
    selection_score."""
    return tuple(
        replace(
            RECORD, key=config.key(), candidate=candidate, config=config.to_dict(),
            label=config.label, state=STATE[candidate], acc_macro=acc, acc_token=acc - 0.05,
        )
        for candidate in CANDIDATES
        for config in STUDY.runs(candidate)
        for acc in [WORTH[candidate] + 0.01 * (config.seed - 1)]
    )  # fmt: skip


def study(root, name="first", change=lambda record: record, **definition):
    """Write a study directory; `change` may change a record, or leave it out with None."""
    store = open_store(replace(STUDY, **definition), root, name)
    for record in filter(None, map(change, runs())):
        curve = tuple(
            EvalPoint(
                step=step, seconds=step / 20, loss=2.0 - step / 200,
                acc_token=record.acc_token * step / 200, acc_macro=record.acc_macro * step / 200,
            )
            for step in range(50, 201, 50)
        )  # fmt: skip
        store.append(replace(record, curve=curve))
    return store
