"""Studies that the MAD benchmark runs: planning, scheduler and worker processes of `mad bench`.

What workers execute lies here, beside the script, so that spawned processes can import it.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mlxhog.mad.result import Point, RunResult
from mlxhog.mad.run_config import RunConfig
from mlxhog.mad.study import session
from mlxhog.mad.study.execution import ExecutionConfig
from mlxhog.mad.study.executors.protocol import RunFunction
from mlxhog.mad.study.planning import Planning
from mlxhog.mad.study.progress import Observer
from mlxhog.mad.study.session import open_store
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study
from mlxhog.mad.training.candidate import train
from mlxhog.mad.watch import Watch


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


def execute(
    folder: Path,
    name: str,
    study: Study,
    run: RunFunction,
    *,
    parallel: int,
    observer: Observer = lambda progress: None,
) -> tuple[Store, float]:
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
    planning = Planning(study)
    ended = session.execute(store, planning, how, parallel, nullcontext(observer), run=run)
    if ended.status == "interrupted":
        raise KeyboardInterrupt
    return store, time.monotonic() - began
