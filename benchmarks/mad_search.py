"""A search of ten architectures: one after the other, and one on each core.

    python benchmarks/mad_search.py          three turns
    python benchmarks/mad_search.py --full   six
    python benchmarks/mad_search.py --only mad_ranking    a night; it continues after a stop

Ten layer sequences, five epochs each, as a study of MAD: one at a time, and as many at once as
there are cores, in turns; the parallel way twice (A/A). Nothing stops early, so both do the same
work. Candidates are independent trainings: no worker writes another's parameters.

mad_ranking: 16 architectures, fixed before any of its runs, in the order of each suite and in that
of ten minutes of training, on one machine: rank correlations.
"""

import tempfile
import time

from harness.estimates import Mean, Rank, Ratio
from harness.frame import run, say
from harness.interleaved import with_control
from harness.machine import cores, smallest

from mlxhog import mad
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


SAME = (
    "mlstm", "slstm", "mh-attention(h16)", "gated-conv", "ssd", "gla", "mamba", "delta-net",
    "gated-delta-net", "kda", "rwkv7", "linear-attention",
)  # fmt: skip
"""Mixers of an architecture with equal blocks."""
RANKED = (
    *(f"({mixer} swiglu)*4" for mixer in SAME),
    "(mlstm swiglu)*7 slstm swiglu",
    "(mlstm swiglu)*2 slstm swiglu mh-attention(h16) swiglu",
    "(gated-conv swiglu)*3 mh-attention(h16) swiglu",
    "(ssd swiglu)*3 mh-attention(h16) swiglu",
)
LONG = "lm:600s"
SUITES = ("smoke", "lite", "recall", "state", "lm:60s", "lm:300s", LONG)
RANKS_ALIKE = 0.85
"""Aim of the rank correlation of the best suite with ten minutes."""


def rank(findings, chosen):
    """Run what is missing of a study for each suite, and compare their orders with the longest."""
    layers = smallest(RANKED[-2:], RANKED)
    scores, rows = {}, {name: {"layers": name} for name in layers}
    names = {canonical(parse(one)): one for one in layers}
    suites = smallest(("lm:2048tok", "lm:4096tok"), SUITES)
    with tempfile.TemporaryDirectory() as scratch:
        for suite in suites:
            study = mad.bench(
                *layers, suite=suite, study="rank-" + suite.replace(":", "-"), parallel=2, pairs=0,
                seeds=1 if suite == "lite" or chosen.tiny else 2, workers="torch:cpu",
                studies_dir=scratch if chosen.tiny else chosen.studies,
            )  # fmt: skip
            if study.status == "interrupted":
                raise KeyboardInterrupt
            scores[suite] = {names[one.candidate]: one for one in study}
            for name, one in scores[suite].items():
                rows[name][suite] = one.score
            say(f"  {suite:12} {study.leaderboard().seconds:9,.0f} s of training")
    findings.table(rows.values())
    *others, last = suites
    for suite in others:
        both = [[scores[one][name].score for name in layers] for one in (suite, last)]
        name = f"rank correlation of {suite} with {last}"
        findings.at_least(name, Rank.of(*both), RANKS_ALIKE, timing=False)
    seeds = [[*scores[last][name].seeds.values()] for name in layers]
    if len(seeds[0]) > 1:
        alike = Rank.of(*zip(*seeds, strict=True))
        findings.at_least(f"rank correlation of two seeds of {last}", alike, 0.0, timing=False)


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
    run(
        __doc__, {"mad_search": measure, "mad_ranking": rank}, first={"quick": 1, "full": 1},
        options={"--studies": {"default": "studies", "help": "folder of mad_ranking's studies"}},
        packages=("torch",), quiet=True, seeds=(3, 6),
    )  # fmt: skip
