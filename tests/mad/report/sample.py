"""Studies made by hand, with known numbers of a report."""

import functools
from dataclasses import replace

from mlxhog.mad.run import Point, RunRecord
from mlxhog.mad.study.store import open_store
from mlxhog.mad.study.study import Study

CONV, CHANNELS, MIXED = "gated-conv swiglu", "swiglu swiglu", "swiglu gated-conv"
CANDIDATES = (CONV, CHANNELS, MIXED)
SEEDS = (0, 1, 2)
STUDY = Study(candidates=CANDIDATES, seeds=SEEDS)  # of suite smoke
TASKS = tuple(dict.fromkeys(setting.task for setting in STUDY.measured.settings))
STATE = {CONV: 256, CHANNELS: 0, MIXED: 128}
WORTH = {CONV: 0.9, CHANNELS: 0.3, MIXED: 0.6}


def unchanged(record):
    return record


def accuracy(candidate, seed):
    """Scores of the seeds 0, 1, 2 differ by 0.01 around the candidate's worth."""
    return WORTH[candidate] + 0.01 * (seed - 1)


@functools.cache
def runs():
    """Every run of the study, all with status done."""
    return tuple(
        _record(candidate, config) for candidate in CANDIDATES for config in STUDY.runs(candidate)
    )


RECORD = RunRecord(
    key="",
    candidate="",
    config={},
    label="",
    status="done",
    acc_token=0.45,
    acc_macro=0.5,
    val_token=None,
    val_macro=None,
    ceiling=1.0,
    loss=1.2,
    steps=200,
    seconds=10.0,
    params=1000,
    state=0,
    reason="",
    host="here",
    at="2026-01-02T03:04:05.000+00:00",
)


def _record(candidate, config):
    acc = accuracy(candidate, config.seed)
    return replace(
        RECORD,
        key=config.key(),
        candidate=candidate,
        config=config.to_dict(),
        label=config.label,
        acc_token=acc - 0.05,
        acc_macro=acc,
        state=STATE[candidate],
    )


def study(root, name="first", change=unchanged, **definition):
    """Write a study directory; `change` may change a record, or leave it out with None."""
    store = open_store(replace(STUDY, **definition), root, name)
    for record in filter(None, map(change, runs())):
        store.append(replace(record, curve=curve(record)))
    return store


def curve(record):
    return tuple(
        Point(
            step=step,
            seconds=step / 20,
            loss=2.0 - step / 200,
            acc_token=record.acc_token * step / 200,
            acc_macro=record.acc_macro * step / 200,
        )
        for step in range(50, 201, 50)
    )
