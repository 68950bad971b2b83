"""`mlxhog mad` itself: what candidates learn, how alike rungs rank, how fast a search is.

    python benchmarks/mad_search.py                    all parts, most of an hour
    python benchmarks/mad_search.py --quick            minutes
    python benchmarks/mad_search.py --only oracles     some of the parts below

oracles    mLSTM on seven settings of suites smoke, recall and knowledge, both backends: the median
           seed answers .99 of the scored test positions within a number of steps
rungs      the order of twelve candidates at a rung, on PyTorch (native) and MLX (plain): the losses
           drift apart by rounding, as those of a CPU and a GPU; Spearman's rho with a bootstrap
           interval over candidates, beside another seed
sharing    the order with an embedding of its own and with one table for all
architecture_search
           ten architectures, five epochs each, one after the other and one on each core, in turns;
           the parallel way twice (A/A). Nothing stops early, so both do the same work, and no
           worker writes another's parameters

Scores of xLSTM's layers beside others are `mlxhog mad bench`, or `mad_record.py`.
"""

import itertools
import tempfile
import time
from contextlib import nullcontext
from statistics import fmean, median

from harness.claims import Claim, Sample
from harness.estimates import Mean, Rank, Ratio
from harness.frame import run, say
from harness.interleaved import on_cores, with_twin
from harness.machine import cores, smallest

from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.run import Callbacks
from mlxhog.mad.study import session
from mlxhog.mad.study.store import open_store
from mlxhog.mad.study.study import Study
from mlxhog.mad.tasks.dataset import unigram
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.mad.training.sharing import shared_tables
from mlxhog.models.mad.sequence import canonical, parse

# -- oracles --------------------------------------------------------------------------------------

BACKENDS = ("torch:cpu", "mlx:cpu")
LAYERS = "mlstm swiglu mlstm swiglu"  # the mLSTM has its causal convolution
SOLVED = 0.99
ORACLES = (
    ("in-context-recall", 300, "smoke", "baseline"),
    ("memorization", 200, "smoke", "baseline"),
    ("selective-copying", 600, "smoke", "baseline"),
    ("depo", 400, "knowledge", "hops=1"),
    ("mano", 200, "knowledge", "operations=1"),
    ("multi-query-associative-recall", 300, "recall", "n_pairs=4, dim=64"),
    ("selective-grammar", 300, "recall", "gap_prob=0.0"),
)
"""Task, steps within which the median seed has to pass, suite, label of the setting."""


def learnt(job):
    """Steps until a seed passes (infinite if not), its accuracy, and the best constant answer's."""
    (task, within, name, label), backend, seed = job
    protocol = {
        "steps": smallest(2, 2 * within),  # one seed may take longer than the median has to
        "eval_every": smallest(2, 10),
        "stop_accuracy": SOLVED,
    }
    how = {"suite": name, "tasks": (task,), "protocol": protocol}
    (config,) = (one for one in runs_of(LAYERS, seed, backend, **how) if one.label == label)
    ended = train(config)
    steps = ended.steps if ended.acc_token >= SOLVED else float("inf")
    return steps, ended.acc_token, unigram(make_run_plan(config).task_rows.dataset())


def oracles(findings, chosen):
    """Small candidates learn the tasks that they should."""
    seeds, every = chosen.seeds[:3], smallest(ORACLES[:2], ORACLES)
    jobs = list(itertools.product(every, BACKENDS, seeds))
    ends, rows = dict(zip(jobs, on_cores(learnt, jobs), strict=True)), []
    for oracle, backend in itertools.product(every, BACKENDS):
        steps, accuracies, constants = zip(*(ends[oracle, backend, s] for s in seeds), strict=True)
        what = f"{backend} {oracle[0]}: median steps to {SOLVED}"
        findings.at_most(what, median(steps), oracle[1], timing=False)
        rows.append({"task": oracle[0], "backend": backend, "steps": Sample.of(steps).spelt(".0f"),
                     "acc_token": min(accuracies), "chance": fmean(constants)})  # fmt: skip
    findings.table(rows)


# -- rungs and sharing ----------------------------------------------------------------------------

SOME = ("mlstm", "slstm", "mh-attention", "gated-conv")
PAIRS = [f"{a} swiglu {b} swiglu" for a, b in itertools.permutations(SOME, 2)]
LEAST = 0.9
"""Rho; a rung that ranks otherwise would drop other candidates."""
SIDES = {
    "torch": ("torch:cpu", "native", 0),
    "mlx": ("mlx:cpu", "reference", 0),
    "another seed": ("torch:cpu", "native", 1),
}


def some_pairs(chosen):
    """The candidates of a mode."""
    return smallest(PAIRS[:3], PAIRS[::2] if chosen.quick else PAIRS)


def runs_of(layers, seed=0, backend="torch:cpu", **definition):
    """The runs of a candidate in a study."""
    study = Study(
        candidates=(canonical(parse(layers)),), seeds=(seed,), workers=backend, **definition
    )
    return study.runs(study.first)


def two_tasks(steps, dim):
    """Two tasks of suite smoke, whose runs end at a step."""
    return {
        "protocol": {"steps": steps, "eval_every": steps},
        "tasks": ("in-context-recall", "selective-copying"), "dim": dim,
    }  # fmt: skip


def rungs(findings, chosen):
    """A rung ranks candidates alike on PyTorch and on MLX."""
    steps, dim = smallest((2, 32), (40, 32) if chosen.quick else (150, 64))
    values = {side: [] for side in SIDES}
    for layers in some_pairs(chosen):
        for side, (backend, kernels, seed) in SIDES.items():
            runs = runs_of(layers, seed, backend, **two_tasks(steps, dim))
            ends = [train(run, worker_options={"kernels": kernels}).acc_macro for run in runs]
            values[side].append(fmean(ends))
    claim_rank(findings, "a rung on torch and on mlx", values, "torch", "mlx")


def sharing(findings, chosen):
    """A shared embedding keeps the order of the scores; else sharing does not pay."""
    steps, dim = smallest((2, 32), (40, 32) if chosen.quick else (600, 64))
    runs = {layers: runs_of(layers, **two_tasks(steps, dim)) for layers in some_pairs(chosen)}
    values = {"own": [], "shared": []}
    with shared_tables(next(iter(runs.values()))) as shared:
        for configs in runs.values():
            values["own"].append(fmean(train(config).acc_macro for config in configs))
            together = (shared(one, callbacks=Callbacks(), rungs=()) for one in configs)
            values["shared"].append(fmean(one.acc_macro for one in together))
    claim_rank(findings, "an embedding of its own and a shared one", values, "own", "shared")


def claim_rank(findings, name, values, own, other):
    """Claim that two lists of scores rank their candidates alike."""
    rho = Rank.of(values[own], values[other])
    findings.at_least(f"Spearman's rho of {name}", rho, LEAST, timing=False)
    findings.results["values"] = values


# -- a search of ten architectures ----------------------------------------------------------------

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


def search(findings, chosen):
    """Search in both ways, in turns, and compare in pairs: memorization of 256 rows."""
    ends = {"epochs": smallest(1, EPOCHS), "steps": None, "eval_every": None}
    study = Study(
        candidates=tuple(canonical(parse(one)) for one in smallest(SEQUENCES[-2:], SEQUENCES)),
        suite="smoke", tasks=("memorization",), seeds=(0,),
        protocol={**ends, "stop_accuracy": 2.0, "lr": 2e-3},
    )  # fmt: skip
    n, accuracies = len(cores()), []

    def searched(way, _):
        parallel = {SERIAL: 1, PARALLEL: n}[way]
        with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:
            store, how = open_store(study, folder, "search"), ExecutionConfig(parallel=parallel)
            began = time.monotonic()
            session.execute(store, study, how, parallel, nullcontext(lambda progress: None))
            spent, records = time.monotonic() - began, store.records()
        if any(one.status != "done" for one in records):
            raise SystemExit("a run of the search did not end; see above")
        accuracies.append({one.candidate: one.acc_token for one in records})
        say(f"  {way:20} {spent:7.1f} s")
        return spent

    seconds, again = with_twin(chosen.seeds, (SERIAL, PARALLEL), searched, twin=PARALLEL)
    findings.same(PARALLEL, seconds[PARALLEL], again)
    findings.table({"way": way, "seconds": Mean.of(s).spelt(".1f")} for way, s in seconds.items())
    sooner, name = Ratio.of(seconds[SERIAL], seconds[PARALLEL]), f"{SERIAL} / {PARALLEL}, seconds"
    findings.compare(
        "10x speedup for full search", *([Claim.of(name, sooner, ">=", 10.0)] if n >= 10 else []),
        measured=f"{sooner} times sooner with {n} at once on {n} cores; candidates that train side "
        "by side share the machine",
    )  # fmt: skip
    findings.at_least(name, sooner, EFFICIENCY * n)
    apart = max(abs(own[key] - accuracies[0][key]) for own in accuracies for key in own)
    findings.exact("largest difference of an accuracy from serial", apart, 0.0)
    findings.results |= {"seconds of": seconds, "acc_token": accuracies[0]}


PARTS = {"oracles": oracles, "rungs": rungs, "sharing": sharing, "architecture_search": search}

if __name__ == "__main__":
    modes = {"quick": "fewer candidates, steps and turns"}
    run(__doc__, PARTS, modes=modes, packages=("torch", "mlx"), seeds=(3, 6))
