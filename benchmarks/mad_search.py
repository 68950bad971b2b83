"""A search of ten architectures: one after the other, and one on each core.

    python benchmarks/mad_search.py          three turns
    python benchmarks/mad_search.py --full   six

Ten layer sequences, five epochs each, as a study of MAD: one at a time, and as many at once as
there are cores, in turns; the parallel way twice (A/A). Nothing stops early, so both do the same
work. Candidates are independent trainings: no worker writes another's parameters.
"""

import tempfile
import time

from harness.estimates import Mean, Ratio
from harness.frame import run, say
from harness.interleaved import with_control
from harness.machine import cores, smallest

from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.study import session
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import open_store
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


def measure(findings, chosen):
    """Search in both ways, in turns, and compare in pairs: memorization of 256 rows."""
    ends = {"epochs": smallest(1, EPOCHS), "steps": None, "eval_every": None}
    study = StudyDefinition(
        candidates=tuple(canonical(parse(one)) for one in smallest(SEQUENCES[-2:], SEQUENCES)),
        suite="smoke", tasks=("memorization",), seeds=(0,),
        recipe={**ends, "stop_accuracy": 2.0, "lr": 2e-3},
    )  # fmt: skip
    n, accuracies = len(cores()), []

    def search(way, _):
        parallel = {SERIAL: 1, PARALLEL: n}[way]
        with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:
            store, how = open_store(study, folder, "search"), ExecutionConfig(parallel=parallel)
            began = time.monotonic()
            ended = session.execute(store, study, how)
            spent, records = time.monotonic() - began, store.records()
        if ended.status == "interrupted":
            raise KeyboardInterrupt
        if failed := [one for one in records if one.status != "done"]:
            raise SystemExit(f"{failed[0].candidate} {failed[0].status}: {failed[0].reason}")
        accuracies.append({f"{one.candidate} on {one.task}": one.acc_token for one in records})
        say(f"  {way:20} {spent:7.1f} s")
        return spent

    seconds, again = with_control(chosen.seeds, (SERIAL, PARALLEL), search, control=PARALLEL)
    findings.same(PARALLEL, seconds[PARALLEL], again)
    findings.table({"way": way, "seconds": Mean.of(s).spelt(".1f")} for way, s in seconds.items())
    sooner, name = Ratio.of(seconds[SERIAL], seconds[PARALLEL]), f"{SERIAL} / {PARALLEL}, seconds"
    findings.at_least(name, sooner, EFFICIENCY * n)
    apart = max(abs(own[key] - accuracies[0][key]) for own in accuracies for key in own)
    findings.exact("largest difference of an accuracy from serial", apart, 0.0)
    findings.results |= {"seconds of": seconds, "acc_token": accuracies[0]}


if __name__ == "__main__":
    run(__doc__, measure, packages=("torch",), quiet=True, seeds=(3, 6))
