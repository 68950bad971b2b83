"""Studies that the MAD benchmark runs: the scheduler and worker processes of `mlxhog mad search`.

What workers execute lies here, beside the script, so that spawned processes can import it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from mlxhog.mad.candidate import train
from mlxhog.mad.progress import Best, StudyProgress
from mlxhog.mad.result import Point, RunResult
from mlxhog.mad.run_config import RunConfig
from mlxhog.mad.study.candidates import Candidates, Layers, Listed
from mlxhog.mad.study.executors.local import local
from mlxhog.mad.study.executors.protocol import RunFunction
from mlxhog.mad.study.record import Record
from mlxhog.mad.study.scheduler import Plan, Scheduler
from mlxhog.mad.study.store import Store, create
from mlxhog.mad.study.study import Study
from mlxhog.mad.watch import Watch

SILENCE_S = 300.0


@dataclass(frozen=True)
class Times:
    """A run within its worker, in seconds of the machine's monotonic clock."""

    pid: int
    began: float
    first_step: float
    ended: float


class FirstStep:
    """A `Watch` that passes everything on, and remembers when the first step had been taken."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.at: float | None = None

    def beat(self) -> None:
        if self.at is None:
            self.at = time.monotonic()
        self._watch.beat()

    def point(self, point: Point) -> None:
        self._watch.point(point)

    def go_on(self, point: Point) -> bool:
        return self._watch.go_on(point)


def timed(out: str, config: RunConfig, *, watch: Watch, rungs: tuple[int, ...]) -> RunResult:
    """Train as `mlxhog mad search` does, and append the run's `Times` to a file."""
    first, began = FirstStep(watch), time.monotonic()
    result = train(config, watch=first, rungs=rungs)
    assert first.at is not None
    line = json.dumps([os.getpid(), began, first.at, time.monotonic()]) + "\n"
    with Path(out).open("a") as file:
        file.write(line)  # one write: runs of other workers append, too
    return result


def times(out: Path) -> list[Times]:
    """Every run that `timed` wrote, in the order of their ends."""
    return [Times(*json.loads(line)) for line in out.read_text().splitlines()]


def trivial(config: RunConfig, *, watch: Watch, rungs: tuple[int, ...]) -> RunResult:
    """A run that takes no time and has a curve of ten points."""
    curve = tuple(
        Point(step=step, seconds=0.1 * step, loss=1.0, acc_token=0.5, acc_macro=0.5)
        for step in range(1, 11)
    )
    for point in curve:
        watch.point(point)
    return RunResult(
        status="done",
        steps=10,
        seconds=1.0,
        loss=1.0,
        acc_token=0.5,
        acc_macro=config.seed / 1000,
        curve=curve,
    )


def judge(candidate: str, records: Sequence[Record]) -> Best:
    """The mean accuracy, enough for a board."""
    return Best(candidate=candidate, score=fmean(record.acc_macro for record in records))


def execute(
    root: Path,
    name: str,
    candidates: Sequence[Layers],
    plan: Plan,
    run: RunFunction,
    *,
    parallel: int,
    observer: Callable[[StudyProgress], None] = lambda progress: None,
) -> tuple[Store, float]:
    """Run a study to its end; returns its store, and the seconds from start to end of it all."""
    store = create(root, name, Study(candidates=("made by a benchmark",)).to_dict())
    began = time.monotonic()
    logs = store.directory / "logs"
    with (
        store.lock(),
        local(run, parallel=parallel, threads=1, logs=logs, silence_s=SILENCE_S) as executor,
    ):
        listed = Candidates(Listed(list(candidates)), store)
        Scheduler(store, listed, plan, judge, executor, observer=observer).run()
    return store, time.monotonic() - began
