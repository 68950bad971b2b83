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

from mlxhog.mad.protocol import Protocol
from mlxhog.mad.run_config import RunConfig
from mlxhog.mad.study.study import PlannedRun
from mlxhog.mad.tasks import find, resolve
from mlxhog.models.mad.sequence import parse

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
"""The slowest first, so that none of them is left alone at the end."""
EPOCHS = 5
THROUGHPUT, START_S = 1.9, 1.5


def plan(candidate: str, *, baseline: bool) -> list[PlannedRun]:
    """The run of a candidate: in-context recall, small (T 32, d 64) or at its baseline.

    Nothing stops before its last epoch, so that both ways do the same work.
    """
    given = {} if baseline else {"seq_len": 32, "test_rows": 256}
    settings = resolve("in-context-recall", given)
    config = RunConfig(
        task=find("in-context-recall").name,
        settings=vars(settings),
        layers=parse(candidate),
        dim=128 if baseline else 64,
        protocol=Protocol(
            lr=2e-3,
            schedule="constant",
            clip=1.0,
            batch_size=128 if baseline else 64,
            epochs=EPOCHS,
            stop_accuracy=2.0,
        ),
        seed=0,
    )
    run = PlannedRun(candidate=candidate, config=config, key=config.key(), label="baseline")
    return [run]


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
        "size": "baseline" if baseline else "T 32, d 64, batch 64, 12,800 rows",
        "epochs": EPOCHS,
        "seconds": {name: Sample.of(values) for name, values in seconds.items()},
        "acc_token": accuracies["serial"][0],
        "start_s": Sample.of(starts),
    }
    print("\n  accuracy after five epochs, serial and parallel alike")
    for candidate, accuracy in accuracies["serial"][0].items():
        print(f"  {accuracy:6.3f}  {candidate}")
    sys.stdout.flush()


def _search(
    folder: Path, name: str, parallel: int, baseline: bool
) -> tuple[float, dict[str, float], list[Times]]:
    """Run the ten sequences; returns seconds, accuracies, and when each run started."""
    out = folder / f"{name}.jsonl"
    store, spent = execute(
        folder,
        name,
        [parse(sequence) for sequence in SEQUENCES],
        partial(plan, baseline=baseline),
        partial(timed, str(out)),
        parallel=parallel,
    )
    records = store.records()
    for record in records:
        if record.status != "done":
            raise SystemExit(f"{record.candidate} {record.status}: {record.reason}")
    return spent, {record.candidate: record.acc_token for record in records}, times(out)


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
