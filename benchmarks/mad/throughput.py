"""Studies as `mad bench` runs them, and when their runs start and end.

What workers execute lies here, beside the scripts, so that spawned processes can import it.
"""

import json
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.run import Point
from mlxhog.mad.study import session
from mlxhog.mad.study.store import open_store
from mlxhog.mad.training.candidate import train


@dataclass(frozen=True)
class Times:
    """A run within its worker, in seconds of the machine's monotonic clock."""

    pid: int
    began: float
    first_step: float
    ended: float


class FirstStep:
    """Callbacks that pass everything on, and remember when the first step had been taken."""

    def __init__(self, callbacks):
        self._callbacks = callbacks
        self.at = None

    def beat(self):
        if self.at is None:
            self.at = time.monotonic()
        self._callbacks.beat()

    def point(self, point):
        self._callbacks.point(point)

    def should_prune(self, point):
        return self._callbacks.should_prune(point)


def timed(out, config, *, callbacks, rungs):
    """Train as `mlxhog mad search` does, and append the run's `Times` to a file."""
    first, began = FirstStep(callbacks), time.monotonic()
    result = train(config, callbacks=first, rungs=rungs)
    assert first.at is not None
    line = json.dumps([os.getpid(), began, first.at, time.monotonic()]) + "\n"
    with Path(out).open("a") as file:
        file.write(line)  # one write: runs of other workers append, too
    return result


def times(out):
    """Every run that `timed` wrote, in the order of their ends."""
    return [Times(*json.loads(line)) for line in out.read_text().splitlines()]


def trivial(config, *, callbacks, rungs):
    """A run that takes no time and has a curve of ten points."""
    curve = tuple(
        Point(step=step, seconds=0.1 * step, loss=1.0, acc_token=0.5, acc_macro=0.5)
        for step in range(1, 11)
    )
    for point in curve:
        callbacks.point(point)
    return config.record(
        "done",
        steps=10,
        seconds=1.0,
        loss=1.0,
        acc_token=0.5,
        acc_macro=config.seed / 1000,
        curve=curve,
    )


def execute(folder, name, study, run, *, parallel, observer=lambda progress: None):
    """Run a study to its end as `mlxhog mad bench` does.

    Args:
        folder: of studies.
        name: of this one.
        study: what it consists of.
        run: executes one run, in a worker.
        parallel: runs at once.
        observer: told how it goes.

    Returns:
        Its store, and the seconds from before the first process to after the last.
    """
    store, how = open_store(study, str(folder), name), ExecutionConfig(parallel=parallel)
    began = time.monotonic()
    ended = session.execute(store, study, how, parallel, nullcontext(observer), run=run)
    if ended.status == "interrupted":
        raise KeyboardInterrupt
    return store, time.monotonic() - began


def searched(folder, name, study, parallel):
    """Search; returns seconds, the accuracy of each run, and when each run started.

    Raises:
        SystemExit: a run did not end.
    """
    out = folder / f"{name}.jsonl"
    store, spent = execute(folder, name, study, partial(timed, str(out)), parallel=parallel)
    records = store.records()
    for record in records:
        if record.status != "done":
            raise SystemExit(f"{record.candidate} {record.status}: {record.reason}")
    scores = {f"{record.candidate} on {record.task}": record.acc_token for record in records}
    return spent, scores, times(out)


def again(runs):
    """Seconds from the end of a run to the first step of the next one in the same process."""
    last = {}
    delays = []
    for run in sorted(runs, key=lambda run: run.began):
        if run.pid in last:
            delays.append(run.first_step - last[run.pid])
        last[run.pid] = run.ended
    return delays


DRAWS = 4000


def rank_correlation(a, b):
    """Spearman's rho of two lists, and its 95 % bootstrap interval over their members."""
    pairs, rng = np.array([a, b]), np.random.default_rng(0)
    drawn = (pairs[:, rng.integers(0, len(a), len(a))] for _ in range(DRAWS))
    values = [stats.spearmanr(*draw).statistic for draw in drawn if np.ptp(draw, axis=1).all()]
    low, high = np.percentile(values, [2.5, 97.5]) if values else (np.nan, np.nan)
    return float(stats.spearmanr(a, b).statistic), float(low), float(high)
