"""A search of ten architectures: one after the other, and one on each core.

    python benchmarks/mad_search.py          three turns
    python benchmarks/mad_search.py --full   six
    python benchmarks/mad_search.py --only mad_ranking          two hours and a half; it continues
    python benchmarks/mad_search.py --full --only mad_ranking   nights    after a stop

Ten layer sequences, five epochs each, as a study of MAD: one at a time, and as many at once as
there are cores, in turns; the parallel way twice (A/A). Nothing stops early, so both do the same
work. Candidates are independent trainings: no worker writes another's parameters.

mad_at_once: two candidates of suite lm at once, with one thread each, and one after the other.

mad_ranking: 16 architectures, fixed before any of its runs, in the order of ten minutes of training
and in those of smoke, a minute and five, on one machine; with --full of all suites but lite, whose
2,000 steps of 16,384 tokens, twelve times a candidate, are days here: rank correlations, and per
minute. `--seed 2 --output benchmarks/results` adds a seed to the recorded ones.

search_pays: an hour of search by successive halving, and beside it, in the same hour and with the
other half of the cores, random sampling; then both winners, xLSTM[7:1] and `minute` train with the
same parameters (but those of embeddings) and for the same time, on bytes. Expected before the first
run: search has 2 % less bits per byte than xLSTM[7:1].
"""

import hashlib
import itertools
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean

import numpy as np
from harness.claims import Claim
from harness.estimates import Mean, Rank, Ratio
from harness.frame import run, say
from harness.interleaved import on_cores, remembered, take_turns, with_control
from harness.machine import cores, smallest
from scipy.stats import rankdata
from training.recording import model_file, record

from mlxhog import mad
from mlxhog.mad import winner
from mlxhog.mad.api import new_bench
from mlxhog.mad.options import BenchOptions, ExecutionConfig
from mlxhog.mad.study import session
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.store import open_store
from mlxhog.mad.training.text import equal_width, machine_text
from mlxhog.models.mad.config import MADConfig
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
    "mlstm", "slstm", "mh-attention(h4)", "gated-conv", "ssd", "gla", "mamba", "delta-net",
    "gated-delta-net", "kda", "rwkv7", "linear-attention",
)  # fmt: skip
"""Mixers of an architecture with equal blocks."""
RANKED = (
    *(f"({mixer} swiglu)*4" for mixer in SAME),
    "(mlstm swiglu)*7 slstm swiglu",
    "(mlstm swiglu)*2 slstm swiglu mh-attention(h4) swiglu",
    "(gated-conv swiglu)*3 mh-attention(h4) swiglu",
    "(ssd swiglu)*3 mh-attention(h4) swiglu",
)
PAIR = RANKED[:1] + RANKED[5:6]
"""Two candidates whose steps take about as long."""
ENOUGH = 1.6
"""Least throughput of two candidates at once, over that of one."""
LONG = "lm:600s"
QUICK_SUITES = ("smoke", "lm:60s", "lm:300s", LONG)
SUITES = ("smoke", "recall", "state", "lm:60s", "lm:300s", LONG)
RANKS_ALIKE = 0.85
"""Aim of the rank correlation with ten minutes, of the suite with most of it per minute."""


def rank(findings, chosen):
    """Run what is missing of a seed; compare each suite's order with the longest's.

    Seeds that were recorded before, of any machine, count beside it: architectures have the mean of
    their places within each seed, so that no order mixes machines.
    """
    for suite in SUITES:  # an impossible width would end a night in its middle
        whole = BenchOptions(layers=RANKED, suite=suite)
        new_bench(whole, {}, ExecutionConfig()).definition.check()
    layers = smallest(RANKED[-2:], RANKED)
    suites = chosen.pick(tiny=("lm:1024tok", "lm:2048tok"), quick=QUICK_SUITES, full=SUITES)
    seeds = chosen.pick(tiny=(1, 2), quick=(chosen.seed,), full=(chosen.seed,))
    runs = recorded(chosen, seeds, suites)
    with tempfile.TemporaryDirectory() as scratch:
        folder = scratch if chosen.tiny else chosen.studies
        runs += [ranked(layers, suites, seed, folder) for seed in seeds]
    findings.seeds = [own["seed"] for own in runs]
    places = {
        suite: np.mean([rankdata([-x for x in own["scores"][suite]]) for own in runs], axis=0)
        for suite in suites
    }
    findings.table(
        {"layers": name, **{suite: float(places[suite][k]) for suite in suites}}
        for k, name in enumerate(layers)
    )
    *others, last = suites
    minutes = {
        suite: fmean(own["seconds"][suite] for own in runs) / 60 / len(layers) for suite in suites
    }
    alike = {suite: Rank.of(places[suite], places[last]) for suite in others}
    per_minute = {suite: rho.value / minutes[suite] for suite, rho in alike.items()}
    rows = [(suite, rho, minutes[suite], per_minute[suite]) for suite, rho in alike.items()]
    for one, other in itertools.combinations(runs, 2):
        again = Rank.of(one["scores"][last], other["scores"][last])
        name = f"{last}, seed {one['seed']} beside {other['seed']}"
        rows.append((name, again, minutes[last], again.value / minutes[last]))
    findings.table(
        {"order by": name, f"rank correlation with {last}": rho, "minutes of a candidate": spent_m,
         "correlation per minute": rate}
        for name, rho, spent_m, rate in rows
    )  # fmt: skip
    best = max(per_minute, key=lambda one: np.nan_to_num(per_minute[one], nan=-np.inf))
    name = f"rank correlation with {last} of {best}, the suite with most per minute"
    findings.at_least(name, alike[best], RANKS_ALIKE, timing=False)
    findings.results |= {"layers": layers, "runs": runs}


def recorded(chosen, seeds, suites):
    """The runs of other seeds, where --output has them for these suites."""
    path = chosen.output and chosen.output / "mad_ranking.json"
    known = json.loads(path.read_text()).get("runs", []) if path and path.exists() else []
    return [one for one in known if one["seed"] not in seeds and one["scores"].keys() >= {*suites}]


def ranked(layers, suites, seed, folder):
    """The scores of architectures by suite, with one seed on this machine, the longest first.

    Studies of another machine have other names.
    """
    machine, run = machine_text(), {"scores": {}, "seconds": {}}
    here = hashlib.sha256(machine.encode()).hexdigest()[:6]
    for suite in reversed(suites):
        study = scored(
            layers, suite, seed, f"rank-{suite.replace(':', '-')}-{seed}-{here}", folder,
            parallel=2, dim=smallest(32, None),
        )  # fmt: skip
        scores = {one.candidate: one.score for one in study}
        run["scores"][suite] = [scores[canonical(parse(one))] for one in layers]
        run["seconds"][suite] = study.leaderboard().seconds
        say(f"  seed {seed}  {suite:12} {run['seconds'][suite]:9,.0f} s of training")
    return {"seed": seed, "machine": machine, **run}


def scored(layers, suite, seed, name, folder, **how):
    """A study of architectures with one seed, whose runs have all ended."""
    study = mad.bench(
        *layers, suite=suite, seeds=(seed,), study=name, studies_dir=folder, pairs=0,
        workers=smallest("mlx:cpu", "torch:cpu"), **how,
    )  # fmt: skip
    if study.status == "interrupted":
        raise KeyboardInterrupt
    for one in study:
        if one.n_failed or one.missing:
            raise SystemExit(f"{one.candidate} lacks runs; see mlxhog mad leaderboard {name}")
    return study


SEARCHES = {"search": {}, "random sampling": {"prune": False}}
SEVEN_TO_ONE, MINUTE, AGAIN = "xLSTM[7:1]", "minute", "xLSTM[7:1] again"
AN_HOUR = 150
"""Candidates of a search on one core: their runs of 7, the best ones also of 20 and 60 s."""
PAIRS = 5
SIZE = "(mlstm swiglu)*2", 128
"""Layers and width with the parameters of every arm: about those of `minute`."""
LOWER = 0.98
"""Largest ratio of bits per byte that counts as a better architecture."""


def search_pays(findings, chosen):
    """Search in both ways at once; train the winners, xLSTM[7:1] and `minute` at one size."""
    budget = chosen.pick(tiny=None, quick="10m", full="1h")
    trained_s = chosen.pick(tiny=None, quick=60, full=90)
    lines = {SEVEN_TO_ONE: RANKED[len(SAME)]}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if chosen.tiny else chosen.studies)
        ended = folder / f"search_pays-{chosen.mode}.jsonl"

        def search(*ways):
            return on_cores(searched, [(way, chosen.mode, budget, str(folder)) for way in ways])

        winners = remembered(ended, search)(*SEARCHES)
        for way, (line, seconds, runs) in zip(SEARCHES, winners, strict=True):
            lines[way] = line
            say(f"  {way:16} {line}  {runs:,} runs, {seconds:,.0f} s of training")
        models = {way: sized(line, Path(scratch) / f"{way}.yaml") for way, line in lines.items()}
        models[MINUTE] = model_file(like=MINUTE, **smallest({"hidden_size": 16}, {}))
        models[AGAIN] = models[SEVEN_TO_ONE]

        def train(arm, seed):
            one = record(
                model=str(models[arm]), tokenizer="bytes", time=trained_s, seed=seed,
                eval_every="1h",
            ).result  # fmt: skip
            say(f"  seed {seed}  {arm:16} {one.val_bits_per_byte:.4f}  {one.tokens:,} tokens")
            return one.val_bits_per_byte

        bits = take_turns(chosen.seeds[:PAIRS], models, remembered(ended, train))
    again = bits.pop(AGAIN)
    findings.same(f"{SEVEN_TO_ONE}, bits per byte", bits[SEVEN_TO_ONE], again)
    best = next(iter(SEARCHES))
    for other in (one for one in bits if one != best):
        name, ratio = f"bits per byte of {best} / {other}", Ratio.of(bits[best], bits[other])
        if other == SEVEN_TO_ONE:
            findings.at_most(name, ratio, LOWER)
        else:
            findings.document(Claim.of(name, ratio, "<=", 1.0))
    findings.table(
        {"arm": arm, "layers": lines.get(arm, ""), "bits per byte": Mean.of(own).spelt(".4f")}
        for arm, own in bits.items()
    )
    findings.results["bits_per_byte"] = bits


def searched(way, mode, budget, folder):
    """The winner of a search with its half of the cores; its seconds of training and its runs."""
    parallel = max(len(cores()) // len(SEARCHES), 1)
    study = mad.search(
        smallest("space-small", "space-xlstm"), suite=smallest("lm:1024tok", "lm:60s"),
        candidates=smallest(2, AN_HOUR * parallel), budget=budget, equal="parameters", pairs=0,
        workers=smallest("torch:cpu", "mlx:cpu"), parallel=parallel, dim=smallest(16, SIZE[1]),
        study=f"{way.replace(' ', '-')}-{mode}", studies_dir=folder, **SEARCHES[way],
    )  # fmt: skip
    if study.status == "interrupted":
        raise KeyboardInterrupt
    return study.best.candidate, study.leaderboard().seconds, len(study.store.records())


def sized(line, path):
    """Write a model file of layers at the width that gives them the parameters of `SIZE`."""
    layers, base = parse(line), smallest(16, SIZE[1])
    width = equal_width(layers, parse(SIZE[0]), base)
    winner.write(path, MADConfig(layers=layers, hidden_size=width))
    return path


def at_once(findings, chosen):
    """Tokens/s of two candidates at once, with one thread each, over those of one."""
    ways, suite = {"one": 1, "two at once": 2}, smallest("lm:1024tok", "lm:20s")

    def train(way, turn):
        with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:
            study = scored(PAIR, suite, turn, "pair", folder, parallel=ways[way],
                           dim=smallest(16, None))  # fmt: skip
            rates = [one.measures["train_tokens_per_s"] for one in study]
        say(f"  {way:12} {' '.join(f'{rate:,.0f}' for rate in rates)} tokens/s")
        return fmean(rates) * ways[way]

    rates, again = with_control(chosen.seeds, (*ways,), train, control="two at once")
    findings.same("two at once", rates["two at once"], again)
    more = Ratio.of(rates["two at once"], rates["one"])
    findings.at_least("two candidates at once / one, tokens/s", more, ENOUGH)
    findings.results["tokens/s of"] = rates


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
        __doc__,
        {"mad_search": measure, "mad_at_once": at_once, "mad_ranking": rank,
         "search_pays": search_pays},
        first={"quick": 2, "full": 2},
        options={
            "--studies": {"default": "studies", "help": "folder of studies that continue"},
            "--seed": {"type": int, "default": 1, "help": "of mad_ranking"},
        },
        packages=("torch",), quiet=True, seeds=(3, 6),
    )  # fmt: skip
