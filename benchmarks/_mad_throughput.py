"""Test 3 of the source document: ten layer sequences, five epochs each, one after the other or two
at once; and how soon a worker that is used again takes its first step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from _harness import Sample
from _mad_found import Found
from _mad_runs import Times, execute, timed, times

from mlxhog.mad.study.study import Study
from mlxhog.models.mad.sequence import canonical, parse

SEQUENCES = (
    "ssd swiglu ssd swiglu",
    "gla swiglu gla swiglu",
    "gla swiglu mlstm swiglu",
    "mlstm swiglu mlstm swiglu",
    "slstm swiglu mlstm swiglu",
    "mlstm swiglu slstm swiglu",
    "mh-attention swiglu mlstm swiglu",
    "mh-attention swiglu mh-attention swiglu",
    "slstm swiglu slstm swiglu",
    "gated-conv swiglu gated-conv swiglu",
)
"""The slowest first, so that no long run is left alone at the end."""
EPOCHS = 5
THROUGHPUT, START_S = 1.9, 1.5


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


def throughput(found: Found, folder: Path, *, rounds: int, baseline: bool) -> None:
    """Search one after the other and two at once, in turns.

    Args:
        found: takes claims and results.
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
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    found.at_least("parallel 2 / serial: searches per second", median(ratios), THROUGHPUT)
    found.exact("largest difference of an accuracy from serial", _difference(accuracies), 0.0)
    name = "reused worker: seconds from the end of a run to the next first step, at most"
    found.at_most(name, max(starts), START_S)
    found.results["throughput"] = {
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
    found = []
    for run in sorted(runs, key=lambda run: run.began):
        if run.pid in last:
            found.append(run.first_step - last[run.pid])
        last[run.pid] = run.ended
    return found
