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
step       a step of the benchmark's Transformer beside plain torch
rows       rows per second of one generating process, of tasks at their baselines
scheduler  a thousand trivial runs: overhead, memory, and a reader of the store all the while
search     ten architectures one after the other and one on each core, in pairs of turns; also
           `architecture_search.py`

Scores of xLSTM's layers beside others are `mlxhog mad bench`, or `mad_record.py`.
"""

import itertools
import tempfile
import time
from pathlib import Path
from statistics import fmean, median

from architecture_search import measure as search
from harness.claims import Claim, Sample
from harness.estimates import Mean
from harness.frame import flags, measured_parts, say
from harness.interleaved import Program, answer, in_turns, on_cores, spawned
from harness.machine import resident, smallest
from mad.reference import MADSize
from mad.throughput import execute, rank_correlation, trivial

from mlxhog.mad.run import Callbacks
from mlxhog.mad.study.store import Store
from mlxhog.mad.study.study import Study
from mlxhog.mad.tasks import make_task
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
    seeds, every = chosen.seeds, smallest(ORACLES[:2], ORACLES)
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
PAIRS = [f"{a} swiglu {b} swiglu" for a, b in itertools.product(SOME, SOME) if a != b]
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
        say("  ".join([f"  {layers:40}", *(f"{k} {own[-1]:.3f}" for k, own in values.items())]))
    claim_rank(findings, "a rung on torch and on mlx", values["torch"], values["mlx"])
    findings.results["values"] = values


def claim_rank(findings, name, a, b):
    """Claim that two lists rank their members alike."""
    rho, low, high = rank_correlation(a, b)
    name = f"Spearman's rho of {name}"
    findings.claims.append(Claim(name, rho, ">=", LEAST, False, (low, high), len(a)))


def sharing(findings, chosen):
    """A shared embedding keeps the order of the scores; else sharing does not pay."""
    steps, dim = smallest((2, 32), (40, 32) if chosen.quick else (600, 64))
    how = two_tasks(steps, dim)
    runs = {layers: runs_of(layers, **how) for layers in some_pairs(chosen)}
    values = {"own": [], "shared": []}
    with shared_tables(next(iter(runs.values()))) as shared:
        for layers, configs in runs.items():
            values["own"].append(fmean(train(config).acc_macro for config in configs))
            together = (shared(one, callbacks=Callbacks(), rungs=()) for one in configs)
            values["shared"].append(fmean(one.acc_macro for one in together))
            say("  ".join([f"  {layers:40}", *(f"{k} {own[-1]:.3f}" for k, own in values.items())]))
    claim_rank(findings, "an embedding of its own and a shared one", *values.values())
    findings.results["values"] = values


# -- speed ----------------------------------------------------------------------------------------

STEP = 1.4
ROWS = {
    "in-context-recall": ({}, 20 * 3500),
    "multi-query-associative-recall": ({}, 200_000),
    "selective-grammar": ({}, 20 * 113),
    "state-tracking": ({"group": "S5", "test_length": 40}, 200_000),
    "dyck": ({"test_length": 40}, 200_000),
    "depo": ({}, 200_000),
    "mano": ({}, 200_000),
}
"""Task -> its settings, and the least rows per second: 200k, or 20 times those of the reference's
generator on one core."""


def step(findings, chosen):
    """Steps per second of both, with one thread and with two."""
    size, (turns, seconds) = MADSize(seq=127), (3, 1.0) if chosen.quick else (5, 3.0)
    programs = {
        "ours": Program("mad.reference", "our_step", {"size": size}),
        "plain torch": Program("mad.reference", "training_step", {"size": size}),
    }
    for threads in smallest((1,), (1, 2)):
        timed = in_turns(programs, threads=threads, turns=turns, seconds=seconds)
        row = f"{threads} thread{'s' * (threads > 1)}"
        findings.same(f"ours, {row}, seconds of a step", timed.seconds["ours"], timed.again)
        ratio = timed.ratio("plain torch", "ours")
        findings.at_least(f"attention + swiglu, {row}: ours / plain torch", ratio, STEP)


def rows(findings, chosen):
    """Rows per second of one generating process."""
    n, turns = smallest(100, 50_000), smallest(1, 3 if chosen.quick else 5)
    for task, (settings, least) in ROWS.items():
        rates = []
        for seed in range(turns):
            began = time.perf_counter()
            make_task(task, seed=seed, train_rows=n, test_rows=1, **settings)
            rates.append(n / (time.perf_counter() - began))
        findings.at_least(f"{task}: rows per second, one process", Mean.of(rates), least)


RUNS, SEEDS, PARALLEL = 1000, 10, 2
OVERHEAD_S, GROWTH = 0.020, 0.05
READ_EVERY_S, FAILED = 0.2, -1
WARM = 200
"""Runs after which memory is looked at first: until then pools and caches fill."""


def scheduler(findings, chosen):
    """Run them, and read the store from another process meanwhile."""
    n_runs, warm = smallest((10 * SEEDS, 5 * SEEDS), (RUNS, WARM))
    study = Study(
        candidates=tuple(f"gated-conv(kernel={k + 2})" for k in range(n_runs // SEEDS)),
        tasks=("in-context-recall",),
        seeds=tuple(range(SEEDS)),
    )
    memory = {}

    def watch(progress):
        memory[progress.done] = resident()[0]

    with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as name:
        folder = Path(name)
        with spawned(_read, folder / "trivial") as (pipe, _):
            answer(pipe, "the reader")  # it is ready
            how = {"parallel": PARALLEL, "observer": watch}
            store, seconds = execute(folder, "trivial", study, trivial, **how)
            pipe.send("end")
            reads = answer(pipe, "the reader")
        ended = len(store.records())
    later = [memory[done] for done in sorted(memory) if done >= warm]  # looks may skip a count
    growth = max(memory.values()) / median(later[:warm]) - 1
    backwards = sum(b < a for a, b in itertools.pairwise(reads))
    findings.exact("trivial runs with a record", ended, n_runs)
    findings.exact("reads of the store while it was written that failed", reads.count(FAILED), 0)
    findings.exact("reads that saw fewer runs than the one before", backwards, 0)
    findings.at_most("scheduler: seconds per trivial run", seconds / n_runs, OVERHEAD_S)
    findings.at_most("scheduler: growth of its memory", growth, GROWTH, timing=False)


def _read(directory, pipe):
    """Read the whole store again and again; sends how many runs each read saw, or `FAILED`."""
    pipe.send("ready")
    reads = []
    while not pipe.poll(READ_EVERY_S):
        try:
            records = Store(directory).records()
            for record in records[-5:]:
                assert len(Store(directory).curve(record.key)) == 10
            reads.append(len(records))
        except Exception as error:  # whatever it is, it counts
            say(f"  the store could not be read: {error!r}")
            reads.append(FAILED)
    pipe.send(reads)


PARTS = {f"mad_{one.__name__}": one for one in (oracles, rungs, sharing, step, rows, scheduler)}
PARTS["architecture_search"] = search


def main():
    """Run the parts, a result each; returns the worst of their exit codes."""
    names = {name.removeprefix("mad_").removeprefix("architecture_"): name for name in PARTS}
    parser = flags(__doc__, parts=names, quick="fewer candidates, steps and turns")
    chosen = parser.parse_args()
    chosen.only = [names[name] for name in chosen.only or names]
    return measured_parts(PARTS, chosen, packages=("torch", "mlx"), seeds=(3, 3))


if __name__ == "__main__":
    raise SystemExit(main())
