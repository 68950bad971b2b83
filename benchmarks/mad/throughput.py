"""Studies as `mad bench` runs them, and the throughput of a search: serial, and two runs at once.

Test 3 of the benchmark: ten layer sequences, five epochs each; and how soon a worker that is used
again takes its first step. What workers execute lies here, beside the script, so that spawned
processes can import it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.claims import Findings, Sample
from harness.estimates import Ratio

from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.run import Callbacks, Point, RunConfig, RunResult
from mlxhog.mad.study import session
from mlxhog.mad.study.pool import RunFunction
from mlxhog.mad.study.progress import StudyProgress
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study, open_store
from mlxhog.mad.training.candidate import train
from mlxhog.models.mad.sequence import canonical, parse
from mlxhog.report.views import Observer

SEQUENCES = (
    "ssd swiglu ssd swiglu",
    "gla swiglu gla swiglu",
    "gla swiglu mlstm swiglu",
    "mlstm swiglu mlstm swiglu",
    "slstm swiglu mlstm swiglu",
    "mlstm swiglu slstm swiglu",
    "mh-attention(h16) swiglu mlstm swiglu",
    "mh-attention(h16) swiglu mh-attention(h16) swiglu",
    "slstm swiglu slstm swiglu",
    "gated-conv swiglu gated-conv swiglu",
)
"""The slowest first, so that no long run is left alone at the end."""
EPOCHS = 5
THROUGHPUT, START_S = 1.9, 1.5


@dataclass(frozen=True)
class Times:
    """A run within its worker, in seconds of the machine's monotonic clock."""

    pid: int
    began: float
    first_step: float
    ended: float


class FirstStep:
    """Callbacks that pass everything on, and remember when the first step had been taken."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self.at: float | None = None

    def beat(self) -> None:
        if self.at is None:
            self.at = time.monotonic()
        self._callbacks.beat()

    def point(self, point: Point) -> None:
        self._callbacks.point(point)

    def should_prune(self, point: Point) -> bool:
        return self._callbacks.should_prune(point)


def timed(
    out: str, config: RunConfig, *, callbacks: Callbacks, rungs: tuple[int, ...]
) -> RunResult:
    """Train as `mlxhog mad search` does, and append the run's `Times` to a file."""
    first, began = FirstStep(callbacks), time.monotonic()
    result = train(config, callbacks=first, rungs=rungs)
    assert first.at is not None
    line = json.dumps([os.getpid(), began, first.at, time.monotonic()]) + "\n"
    with Path(out).open("a") as file:
        file.write(line)  # one write: runs of other workers append, too
    return result


def times(out: Path) -> list[Times]:
    """Every run that `timed` wrote, in the order of their ends."""
    return [Times(*json.loads(line)) for line in out.read_text().splitlines()]


def trivial(config: RunConfig, *, callbacks: Callbacks, rungs: tuple[int, ...]) -> RunResult:
    """A run that takes no time and has a curve of ten points."""
    curve = tuple(
        Point(step=step, seconds=0.1 * step, loss=1.0, acc_token=0.5, acc_macro=0.5)
        for step in range(1, 11)
    )
    for point in curve:
        callbacks.point(point)
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
    observer: Observer[StudyProgress] = lambda progress: None,
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


def study(*, baseline: bool) -> Study:
    """Two tasks with settings of suite smoke (d 64, batch 64, 6,400 rows), or their baselines.

    Nothing stops before its last epoch, so that both ways do the same work.
    """
    ends = {"epochs": EPOCHS, "steps": None, "eval_every": None, "stop_accuracy": 2.0}
    return Study(
        candidates=tuple(canonical(parse(sequence)) for sequence in SEQUENCES),
        suite="lite" if baseline else "smoke",
        tasks=("in-context-recall", "selective-copying"),
        protocol={**ends, "lr": 2e-3},
        seeds=(0,),
    )


def throughput(findings: Findings, folder: Path, *, rounds: int, baseline: bool) -> None:
    """Search one after the other and two at once, in turns.

    Args:
        findings: takes claims and results.
        folder: for the studies.
        rounds: of both.
        baseline: the benchmark's own sizes instead of small ones.
    """
    ways = {"serial": 1, "parallel 2": 2}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    accuracies: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    starts: list[float] = []
    for turn in range(rounds):
        for name, parallel in ways.items():
            run = f"{name.replace(' ', '-')}-{turn}"
            spent, scores, own = _search(folder, run, parallel, baseline)
            seconds[name].append(spent)
            accuracies[name].append(scores)
            starts += again(own)
            print(f"  {name:20} {spent:7.1f} s", flush=True)
    ratio = Ratio.of(*seconds.values())
    findings.at_least("parallel 2 / serial: searches per second", ratio, THROUGHPUT)
    findings.exact("largest difference of an accuracy from serial", _difference(accuracies), 0.0)
    name = "reused worker: seconds from the end of a run to the next first step, at most"
    findings.at_most(name, max(starts), START_S)
    findings.results["throughput"] = {
        "study": study(baseline=baseline).to_dict(),
        "epochs": EPOCHS,
        "seconds": {name: Sample.of(values) for name, values in seconds.items()},
        "acc_token": accuracies["serial"][0],
        "start_s": Sample.of(starts),
    }
    print("\n  accuracy after five epochs, serial and parallel alike")
    for run, accuracy in sorted(accuracies["serial"][0].items()):
        print(f"  {accuracy:6.3f}  {run}")
    sys.stdout.flush()


def _search(
    folder: Path, name: str, parallel: int, baseline: bool
) -> tuple[float, dict[str, float], list[Times]]:
    """Run the ten sequences; returns seconds, accuracies, and when each run started."""
    out = folder / f"{name}.jsonl"
    store, spent = execute(
        folder, name, study(baseline=baseline), partial(timed, str(out)), parallel=parallel
    )
    records = store.records()
    for record in records:
        if record.status != "done":
            raise SystemExit(f"{record.candidate} {record.status}: {record.reason}")
    scores = {f"{record.candidate} on {record.task}": record.acc_token for record in records}
    return spent, scores, times(out)


def _difference(accuracies: Mapping[str, list[dict[str, float]]]) -> float:
    """The largest difference between any search and the first one."""
    every = [scores for way in accuracies.values() for scores in way]
    return max(abs(one[name] - every[0][name]) for one in every for name in every[0])


def again(runs: Sequence[Times]) -> list[float]:
    """Seconds from the end of a run to the first step of the next one in the same process."""
    last: dict[int, float] = {}
    delays = []
    for run in sorted(runs, key=lambda run: run.began):
        if run.pid in last:
            delays.append(run.first_step - last[run.pid])
        last[run.pid] = run.ended
    return delays
