"""A search of ten architectures: one after the other, and one on each core."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from experiment.figures import intervals, new_panel
from experiment.record import UNTOLD, Compared, Experiment, Outcome, run, say
from harness.claims import Claim, Twin
from harness.estimates import Mean, Ratio
from harness.interleaved import with_twin
from harness.machine import cores
from mad.throughput import again, searched

from mlxhog.mad.study.study import Study
from mlxhog.models.mad.sequence import canonical, parse

ABOUT = Experiment(
    name="architecture_search",
    title="A search of ten architectures, serial and in parallel",
    source="document 001, Test 3",
    about=(
        "Ten layer sequences, five epochs each, as a study of MAD: one at a time, and as many at "
        "once as there are cores, in turns. Nothing stops early, so both do the same work. "
        "Processes start once, which takes as long for short trainings as for long ones; so the "
        "time without that start is compared, too. "
        "Candidates are independent trainings: no worker writes another's parameters."
    ),
    packages=("torch",),
    full_seeds=6,
)
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
SERIAL, PARALLEL = "serial", "one on each core"
EFFICIENCY = 0.95
"""Least share of the cores that a search of our own should use."""
START_S = 1.5


class Search(NamedTuple):
    """Seconds of a search: all of them, and those from its first run's start to its last's end."""

    seconds: float
    trained_s: float


def study(scale):
    """Memorization of 256 rows."""
    sequences = scale.pick(tiny=SEQUENCES[-2:], quick=SEQUENCES, full=SEQUENCES)
    epochs = scale.pick(tiny=1, quick=EPOCHS, full=EPOCHS)
    ends = {"epochs": epochs, "steps": None, "eval_every": None, "stop_accuracy": 2.0}
    return Study(
        candidates=tuple(canonical(parse(sequence)) for sequence in sequences),
        suite="smoke",
        tasks=("memorization",),
        protocol={**ends, "lr": 2e-3},
        seeds=(0,),
    )


def result(scale):
    """Search in both ways, in turns; the parallel way twice (A/A)."""
    chosen, ways = study(scale), {SERIAL: 1, PARALLEL: len(cores())}
    accuracies = []
    starts = []
    with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:
        count = iter(range(1000))

        def search(way, _):
            seconds, scores, own = searched(Path(folder), f"{next(count)}", chosen, ways[way])
            accuracies.append(scores)
            starts.extend(again(own))
            say(f"  {way:20} {seconds:7.1f} s")
            trained_s = max(run.ended for run in own) - min(run.began for run in own)
            return Search(seconds, trained_s)

        searches, twin = with_twin(scale.seeds, ways, search, twin=PARALLEL)
    return outcome(searches, twin, accuracies, starts, chosen.to_dict())


def outcome(searches, twin, accuracies, starts, settings):
    """Compare both ways in pairs of turns."""
    seconds = {way: [one.seconds for one in own] for way, own in searches.items()}
    trained = {way: [one.trained_s for one in own] for way, own in searches.items()}
    sooner = Ratio.of(seconds[SERIAL], seconds[PARALLEL])
    apart = max(abs(one[name] - accuracies[0][name]) for one in accuracies for name in one)
    name, n = f"{SERIAL} / {PARALLEL}, seconds", len(cores())
    ten, text = (
        "10x speedup for full search",
        f"{sooner} times sooner with {n} at once on {n} cores",
    )
    if n < 10:
        text += ". Candidates that train side by side share the machine; fewer than 10 cores allow"
        tenfold = Compared(ten, f"{text} no 10x.", UNTOLD)
    else:
        tenfold = Compared.of(ten, Claim.of(name, sooner, ">=", 10.0), measured=text)
    return Outcome(
        compared=[tenfold],
        table=[
            {
                "way": way,
                "seconds": Mean.of(own).spelt(".1f"),
                "without the start": Mean.of(trained[way]).spelt(".1f"),
                "searches": len(own),
            }
            for way, own in seconds.items()
        ],
        claims=[
            Claim.of(name, sooner, ">=", EFFICIENCY * n),
            Claim.of(
                f"{name} without the start of the processes",
                Ratio.of(trained[SERIAL], trained[PARALLEL]),
                ">=",
                EFFICIENCY * n,
            ),
            Claim("largest difference of an accuracy from serial", apart, "==", 0.0, timing=False),
            Claim(
                "reused worker, seconds from a run to the next first step, at most",
                max(starts, default=0.0),
                "<=",
                START_S,
            ),
        ],
        settings=dict(settings),
        results={"seconds": seconds, "trained_s": trained, "acc_token": dict(accuracies[0])},
        twins=[Twin.of(PARALLEL, seconds[PARALLEL], [one.seconds for one in twin])],
    )


def draw(outcome):
    """Seconds of every search."""
    figure, axes = new_panel(x="seconds", y="", heading="A search of ten architectures")
    intervals(axes, outcome.results["seconds"])
    axes.set_xlim(left=0)
    return figure


if __name__ == "__main__":
    raise SystemExit(run(ABOUT, result, draw))
