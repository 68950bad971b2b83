"""Searches of `mlxhog mad`: what candidates learn, how alike rungs rank, how fast, recorded scores.

    python benchmarks/mad_bench.py oracles        a minute; --seeds 3
    python benchmarks/mad_bench.py rungs          ten minutes; --quick a minute or two
    python benchmarks/mad_bench.py sharing        half an hour; --quick a minute or two
    python benchmarks/mad_bench.py search         a few minutes
    python benchmarks/mad_bench.py table          twenty minutes; --suite lite, --dry-run
    python benchmarks/mad_bench.py surface        an hour; --dry-run, --quick --out FOLDER, --show

    oracles   mLSTM on seven settings of suites smoke, recall and knowledge, both backends: the
              median seed answers .99 of the scored test positions within a number of steps
    rungs     the order of twelve candidates at a rung, on PyTorch (native) and MLX (plain): the
              losses drift apart by rounding, as those of a CPU and a GPU; Spearman's rho with a
              bootstrap interval over candidates, beside another seed
    sharing   the order with an embedding of its own and with one table for all (document 001)
    search    a step beside plain torch, rows of tasks, a thousand trivial runs with a reader
    table     xLSTM's layers beside attention and linear recurrences, with intervals; written beside
              this script as mad_table.md and .json
    surface   every candidate of a small space, for the replays of `samplers.py`

`table` and `surface` are studies (`mlxhog mad board studies/...`): interrupt them at any time, and
the same command continues. Ten layer sequences, serial against several at once, are
experiments/architecture_search.py.
"""

import itertools
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from harness.claims import Claim, Sample, measured
from harness.interleaved import on_cores
from harness.machine import ROOT, cores, smallest
from mad import scheduler, step
from mad.ranks import RankCorrelation
from mad.sharing import shared_tables
from mad.surface import load
from mad.surface import write as write_surface
from mad.table import MEANINGS, Table, places, table_flags, write

from mlxhog.base.quantities import format_bytes, format_clock
from mlxhog.cli.mad.session import observer, seeds
from mlxhog.errors import MlxhogError
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.search.space import to_space
from mlxhog.mad.study.session import Planning, execute
from mlxhog.mad.study.study import Study, open_store
from mlxhog.mad.suites import at_dim, expand, fixed, only, suite
from mlxhog.mad.tasks.dataset import unigram
from mlxhog.mad.training.candidate import estimate, train
from mlxhog.mad.training.run_plan import make_run_plan
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
    chosen = only(suite(name), [task])
    settings = tuple(one for one in chosen.settings if one.label == label)
    protocol = {
        "steps": smallest(2, 2 * within),  # one seed may take longer than the median has to
        "eval_every": smallest(2, 10),
        "stop_accuracy": SOLVED,
    }
    runs = expand(
        replace(chosen, settings=settings), parse(LAYERS), [seed], workers=backend,
        protocol=protocol,
    )  # fmt: skip
    config = next(iter(runs))
    ended = train(config)
    steps = ended.steps if ended.acc_token >= SOLVED else float("inf")
    return steps, ended.acc_token, unigram(make_run_plan(config).task_rows.dataset())


def oracles(findings, chosen):
    """Small candidates learn the tasks that they should."""
    seeds, every = range(smallest(1, chosen.seeds)), smallest(ORACLES[:2], ORACLES)
    jobs = list(itertools.product(every, BACKENDS, seeds))
    ends, rows = dict(zip(jobs, on_cores(learnt, jobs), strict=True)), []
    for oracle, backend in itertools.product(every, BACKENDS):
        steps, accuracies, constants = zip(*(ends[oracle, backend, s] for s in seeds), strict=True)
        sample = Sample.of(steps)
        what = f"{backend} {oracle[0]}: median steps to {SOLVED}"
        findings.at_most(what, sample.median, oracle[1], timing=False)
        rows.append({"task": oracle[0], "backend": backend, "within": oracle[1], "steps": sample,
                     "acc_token": min(accuracies), "chance": fmean(constants)})  # fmt: skip
        print(f"{backend:10} {oracle[0]:32} {sample.spelt('.0f'):>16} "
              f"{min(accuracies):9.3f} {fmean(constants):9.3f}", flush=True)  # fmt: skip
    findings.results |= {"layers": LAYERS, "seeds": list(seeds), "oracles": rows}


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


def runs_of(layers, steps, dim, *, seed=0, **how):
    """The runs of a candidate on two tasks of suite smoke, which end at a step."""
    protocol = {"steps": steps, "eval_every": steps}
    tasks = ("in-context-recall", "selective-copying")
    one = at_dim(only(fixed(suite("smoke"), protocol), tasks), dim)
    return list(expand(one, parse(layers), [seed], protocol=protocol, **how))


def compare_ranks(findings, values, first, **facts):
    """Print and keep the correlation of each list of values with the first."""
    ranks = {side: RankCorrelation.of(values[first], values[side]) for side in values}
    for side, rank in list(ranks.items())[1:]:
        words = f"{rank.rho:.3f} ({rank.low:.3f} to {rank.high:.3f})"
        print(f"  Spearman's rho of {first} and {side}: {words}")
    rho = {side: asdict(rank) for side, rank in ranks.items() if side != first}
    findings.results |= {**facts, "values": values, "rho": rho}
    return ranks


def rungs(findings, chosen):
    """A rung ranks candidates alike on PyTorch and on MLX."""
    steps, dim = smallest((2, 32), (40, 32) if chosen.quick else (150, 64))
    values = {side: [] for side in SIDES}
    for layers in some_pairs(chosen):
        for side, (backend, kernels, seed) in SIDES.items():
            runs = runs_of(layers, steps, dim, seed=seed, workers=backend)
            ends = [train(run, worker_options={"kernels": kernels}).acc_macro for run in runs]
            values[side].append(fmean(ends))
        shown = "  ".join(f"{side} {own[-1]:.3f}" for side, own in values.items())
        print(f"  {layers:40} {shown}", flush=True)
    facts = {"candidates": some_pairs(chosen), "rung": steps, "dim": dim}
    rank = compare_ranks(findings, values, "torch", **facts)["mlx"]
    if not chosen.quick:
        name, n = "Spearman's rho of a rung on torch and on mlx", len(values["torch"])
        claim = Claim(name, rank.rho, ">=", LEAST, False, (rank.low, rank.high), n)
        findings.claims.append(claim)


def sharing(findings, chosen):
    """A shared embedding keeps the order of the scores; else sharing does not pay."""
    steps, dim = smallest((2, 32), (40, 32) if chosen.quick else (600, 64))
    runs = {layers: runs_of(layers, steps, dim) for layers in some_pairs(chosen)}
    values = {"own": [], "shared": []}
    with shared_tables(next(iter(runs.values()))) as run:
        for layers, configs in runs.items():
            own = [train(config).acc_macro for config in configs]
            shared = [run(config).acc_macro for config in configs]
            values["own"].append(fmean(own))
            values["shared"].append(fmean(shared))
            print(f"  {layers:40} own {fmean(own):.3f}  shared {fmean(shared):.3f}", flush=True)
    compare_ranks(findings, values, "own", candidates=list(runs), steps=steps, dim=dim)


# -- speed ----------------------------------------------------------------------------------------


def search(findings, chosen):
    """A step beside plain torch, rows of tasks, the scheduler."""
    turns, seconds = (3, 1.0) if chosen.quick else (5, 3.0)
    step.steps(findings, turns=turns, seconds=seconds)
    step.rows(findings, turns=turns)
    with tempfile.TemporaryDirectory(prefix="mlxhog-mad-") as folder:
        scheduler.scheduler(findings, Path(folder))


# -- the table ------------------------------------------------------------------------------------

ROWS = {
    "mLSTM": "mlstm swiglu mlstm swiglu",
    "sLSTM": "slstm swiglu slstm swiglu",
    "sLSTM, convolution": "slstm(conv=4) swiglu slstm(conv=4) swiglu",
    "mLSTM, sLSTM": "mlstm swiglu slstm swiglu",
    "sLSTM, mLSTM": "slstm swiglu mlstm swiglu",
    "attention": "mh-attention(h16) swiglu mh-attention(h16) swiglu",
    "GLA": "gla swiglu gla swiglu",
    "SSD (Mamba-2)": "ssd swiglu ssd swiglu",
    "gated convolution": "gated-conv swiglu gated-conv swiglu",
    "xLSTM[7:1], 8 blocks": "(mlstm swiglu)*7 slstm swiglu",
}
"""Four layers at the suite's width; the last has eight blocks and stands apart, with its cost."""


def table(findings, chosen):
    """Run what is missing of the study, and write the table."""
    extra = "" if chosen.suite == "smoke" else f" --suite {chosen.suite}"
    one = Table(
        name=f"mad-table-{chosen.suite}", layers=ROWS, suite=chosen.suite,
        seeds=seeds(smallest("1", "3")), tasks=smallest(("memorization",), ()),
        command=f"python benchmarks/mad_bench.py table{extra}",
    )  # fmt: skip
    parallel = chosen.parallel or len(cores())
    how = ExecutionConfig(parallel=parallel, out=chosen.studies)
    if chosen.dry_run:
        one.print_eta(how)
        return
    ranking, ended = one.run(how, quiet=chosen.quiet, table_only=chosen.table_only)
    four, deep = (
        [row for row in ranking.rows if (len(row.layers) > 4) == more] for more in (False, True)
    )
    lines = [f"# MAD scores, suite `{ranking.suite}`", "", f"    {one.command}", ""]
    lines += [one.made(ranking, parallel), "", MEANINGS, "", *one.rows(four, ranking.tasks), ""]
    if deep:
        about = "Eight blocks, so four times the layers; compare its cost, not its rank:"
        lines += [about, "", *one.rows(deep, ranking.tasks), ""]
    if ranking.suite != "full":
        lines += [
            "Not the benchmark's own difficulty grid: see `mlxhog/mad/suites/` for the settings. "
            "These scores say what each stack learns within the steps below, and do not compare "
            "with published ones.",
            "",
        ]
    suffix = "" if chosen.suite == "smoke" else f"_{chosen.suite}"
    path = Path(chosen.out or ROOT / "benchmarks") / f"mad_table{suffix}"
    text = "\n".join([*lines, *one.facts(ranking)]) + "\n"
    write(path, text, one.document(ranking, parallel))
    if ended == "interrupted":
        raise SystemExit(130)


# -- a surface ------------------------------------------------------------------------------------

SURFACE = ROOT / "benchmarks" / "mad" / "surface.json.xz"
MIXERS = (
    "mlstm", "slstm", "mh-attention", "gla", "ssd", "gated-delta-net", "gated-conv", "mamba",
    "linear-attention",
)  # fmt: skip
TASKS = ("in-context-recall", "selective-copying", "noisy-in-context-recall", "compression")
"""Changes of samplers are chosen on the first half, and reported on the second."""
EVALUATIONS = 20
"""So that every rung of a replayed halving is an evaluation."""


def study_of(*, quick):
    """The study that a surface records: the suite's protocol, at width 32 and with fewer steps."""
    mixers, channels = MIXERS[: smallest(1, 5 if quick else None)], ("swiglu", "mlp")
    space = {"depth": 4, "mixers": list(mixers), "channels": list(channels[: 1 if quick else 2])}
    steps = smallest(EVALUATIONS, 40 if quick else 240)
    return Study(
        space=to_space(space).to_dict(),
        suite="smoke",
        tasks=TASKS[:2] if quick else TASKS,
        protocol={"steps": steps, "eval_every": max(1, steps // EVALUATIONS)},
        seeds=seeds("1"),
        dim=32,
        sampler="random",  # so that the runs so far say how long the rest takes
    )


def surface(findings, chosen):
    """Record every candidate of a space, and show what the surface has.

    Raises:
        SystemExit: a quick record would replace the committed one; the user interrupted it.
    """
    path = Path(chosen.out or ROOT / "benchmarks" / "mad") / SURFACE.name
    if not chosen.show:
        if chosen.quick and path == SURFACE:
            raise SystemExit(f"--quick would replace {path.name}; give another folder by --out")
        study = study_of(quick=chosen.quick)
        parallel = chosen.parallel or len(cores())
        planning = Planning(study)
        how = ExecutionConfig(parallel=parallel, out=chosen.studies)
        if chosen.dry_run:
            print(duration(planning, parallel))
            return
        store = open_store(study, how.out, f"mad-surface{'-quick' * chosen.quick}")
        board = observer(sys.stderr, quiet=chosen.quiet)
        if execute(store, planning, how, parallel, board).status == "interrupted":
            print("interrupted; the same command continues", file=sys.stderr)
            raise SystemExit(130)
        print(f"{path}: {format_bytes(write_surface(store, path))}, with a digest of its content")
    known = load(path)
    ended = [run.record for runs in known.runs.values() for run in runs]
    lost = sum(record.status in ("failed", "diverged") for record in ended)
    spent = format_clock(sum(record.seconds for record in ended))
    print(f"{len(known.runs)} candidates, {len(ended)} runs, {lost} lost, trained {spent}")
    for seed, scores in zip(known.seeds, known.scores(), strict=True):
        best = list(known.runs)[scores.argmax()]
        print(f"seed {seed}: worst {scores.min():.3f}, median {np.median(scores):.3f}, "
              f"best {scores.max():.3f} {best}")  # fmt: skip


def duration(planning, parallel):
    """The time of all runs: a step's is a sum over slots, so that of every mixer in both of its."""
    space, seconds = to_space(planning.study.space), []
    for mixer in space.mixers:
        stack = canonical((mixer, space.channels[0]) * (space.depths[0] // 2))
        runs = [run for run in planning.runs(stack) if run.seed == planning.study.seeds[0]]
        own = [estimate(make_run_plan(run)) for run in runs]
        seconds.append(fmean(one.total_s for one in own if one is not None))
        print(f"{stack:60} {seconds[-1]:6.1f} s a run", flush=True)
    total = planning.total * fmean(seconds) / parallel
    return f"{planning.total} runs, at most {format_clock(total)} with {parallel} at once"


PARTS = {one.__name__: one for one in (oracles, rungs, sharing, search, table, surface)}


def main():
    """Run the parts, a result each; returns the worst of their exit codes."""
    parser = table_flags(__doc__, quick="fewer candidates, steps and turns")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, default=3, help="oracles: runs of each")
    parser.add_argument("--suite", default="smoke", choices=("smoke", "lite", "full"), help="table")
    parser.add_argument("--show", action="store_true", help="surface: only what the file has")
    chosen = parser.parse_args()
    if (unknown := set(chosen.parts) - set(PARTS)) or not (chosen.parts or chosen.tiny):
        wrong = f"no part {min(unknown)}" if unknown else "which part?"
        parser.error(f"{wrong} There are {', '.join(PARTS)}")
    codes, names = [], chosen.parts or PARTS
    with places(chosen):
        for name in names:
            try:
                how = {"packages": ("torch", "mlx"), "quiet": name == "search"}
                codes.append(measured(f"mad_{name}", chosen, PARTS[name], **how))
            except MlxhogError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    return next((code for code in (1, 3) if code in codes), 0)


if __name__ == "__main__":
    raise SystemExit(main())
