"""A search of ten architectures: one after the other, and one on each core.

    python benchmarks/architecture_search.py          three turns
    python benchmarks/architecture_search.py --full   six

Ten layer sequences, five epochs each, as a study of MAD: one at a time, and as many at once as
there are cores, in turns; the parallel way twice (A/A). Nothing stops early, so both do the same
work. Processes start once, which takes as long for short trainings as for long ones; so the time
without that start is compared, too. Candidates are independent trainings: no worker writes
another's parameters.
"""

import tempfile
from pathlib import Path

from harness.claims import Claim
from harness.estimates import Mean, Ratio
from harness.frame import MODES, flags, measured, say
from harness.interleaved import with_twin
from harness.machine import cores
from mad.throughput import again, searched

from mlxhog.mad.study.study import Study
from mlxhog.models.mad.sequence import canonical, parse

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


def study(chosen):
    """Memorization of 256 rows."""
    sequences = SEQUENCES[-2:] if chosen.tiny else SEQUENCES
    ends = {"epochs": 1 if chosen.tiny else EPOCHS, "steps": None, "eval_every": None}
    return Study(
        candidates=tuple(canonical(parse(sequence)) for sequence in sequences),
        suite="smoke",
        tasks=("memorization",),
        protocol={**ends, "stop_accuracy": 2.0, "lr": 2e-3},
        seeds=(0,),
    )


def measure(findings, chosen):
    """Search in both ways, in turns, and compare in pairs."""
    one, ways, n = study(chosen), {SERIAL: 1, PARALLEL: len(cores())}, len(cores())
    accuracies, starts, counter = [], [], iter(range(1000))
    with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:

        def search(way, _):
            spent, scores, runs = searched(Path(folder), f"{next(counter)}", one, ways[way])
            accuracies.append(scores)
            starts.extend(again(runs))
            say(f"  {way:20} {spent:7.1f} s")
            return spent, max(run.ended for run in runs) - min(run.began for run in runs)

        searches, twin = with_twin(chosen.seeds, ways, search, twin=PARALLEL)
    seconds, trained = (
        {way: [times[k] for times in own] for way, own in searches.items()} for k in (0, 1)
    )
    findings.same(PARALLEL, seconds[PARALLEL], [whole for whole, _ in twin])
    sooner, name = Ratio.of(seconds[SERIAL], seconds[PARALLEL]), f"{SERIAL} / {PARALLEL}, seconds"
    findings.table(
        {"way": way, "seconds": Mean.of(own).spelt(".1f"),
         "without the start": Mean.of(trained[way]).spelt(".1f")}
        for way, own in seconds.items()
    )  # fmt: skip
    tenfold = [Claim.of(name, sooner, ">=", 10.0)] if n >= 10 else []
    findings.compare(
        "10x speedup for full search", *tenfold,
        measured=f"{sooner} times sooner with {n} at once on {n} cores; candidates that train side "
        "by side share the machine",
    )  # fmt: skip
    findings.at_least(name, sooner, EFFICIENCY * n)
    name = f"{name} without the start of the processes"
    findings.at_least(name, Ratio.of(trained[SERIAL], trained[PARALLEL]), EFFICIENCY * n)
    apart = max(abs(own[key] - accuracies[0][key]) for own in accuracies for key in own)
    findings.exact("largest difference of an accuracy from serial", apart, 0.0)
    name = "reused worker, seconds from a run to the next first step, at most"
    findings.at_most(name, max(starts, default=0.0), START_S)
    findings.results |= {"seconds of": seconds, "acc_token": accuracies[0]}


def main():
    """Read the flags, and measure."""
    chosen = flags(__doc__, **MODES).parse_args()
    return measured(
        "architecture_search", chosen, measure, packages=("torch",), quiet=True, seeds=(3, 6)
    )


if __name__ == "__main__":
    raise SystemExit(main())
