"""Replication of a published MAD table with xLSTM: rank correlation with it, and new rows.

    python benchmarks/mad_record.py --quick      two tasks, one seed: a few minutes, proves the way
    python benchmarks/mad_record.py --dry-run    what the reduced grid takes here, measured
    python benchmarks/mad_record.py              the reduced grid, 2 seeds: about 7 hours on 2 cores
    python benchmarks/mad_record.py --full --executor ray --ray-address auto --parallel 64
                                                 the published grid, 396 runs a row, on a cluster

It is a study, studies/mad-record-...: interrupt it at any time, and the same command continues;
other `--seeds` or `--rates` are refused, with both values named. The table is written beside this
script (of --quick into the study's folder) after every session; one that lacks runs says so. A
layer that this mlxhog does not have is an error.

The layers follow the scripts of the published table: one head, two for PaTH and the Transformer,
SwiGLU between them but for Mamba, width 128. Three differences are known. Its Transformer script
has a window of 128, with which .998 on selective copying of up to 1,024 tokens is impossible in two
layers; ours has none. Its GLA has keys of half the width. It computes in bfloat16.
The reduced grid has smaller settings, of width 64: its ranks compare, its scores do not.

Source: github.com/HassanJbara/lin-attn-bench at ac6d5ab, README and evals/mad; Poli et al. 2024,
arXiv:2403.17844; Yang et al. 2025, PaTH, arXiv:2505.16381; von Oswald et al. 2025, MesaNet,
arXiv:2506.05233; Beck et al. 2024, xLSTM, arXiv:2405.04517; Peng et al. 2025, RWKV-7,
arXiv:2503.14456.
"""

import math
from dataclasses import astuple, replace
from pathlib import Path
from statistics import fmean

from harness.claims import measured
from harness.machine import ROOT, cores
from mad.ranks import RankCorrelation, kendall, spearman
from mad.table import MEANINGS, Table, places, table_flags, write

from mlxhog.cli.mad.session import rates, seeds
from mlxhog.errors import MlxhogError
from mlxhog.mad.options import ExecutionConfig
from mlxhog.mad.scores import UNFINISHED
from mlxhog.mad.tasks import find

TASKS = ("C", "FR", "CR", "M", "NR", "SC")
PUBLISHED = {
    "PaTH": (0.419, 0.647, 0.999, 0.784, 0.999, 0.999),
    "Transformer": (0.432, 0.565, 0.905, 0.788, 0.897, 0.998),
    "MesaNet": (0.347, 0.515, 0.999, 0.750, 0.999, 0.894),
    "mLSTM": (0.478, 0.237, 1.000, 0.896, 1.000, 0.870),
    "RWKV-7": (0.462, 0.180, 0.999, 0.886, 0.999, 0.949),
    "Mamba": (0.491, 0.123, 0.993, 0.896, 0.997, 0.887),
    "Gated DeltaNet": (0.435, 0.286, 0.999, 0.552, 0.999, 0.997),
    "DeltaNet": (0.396, 0.393, 0.999, 0.394, 0.999, 0.997),
    "GLA": (0.408, 0.155, 0.918, 0.771, 0.931, 0.891),
    "GSA": (0.397, 0.212, 0.769, 0.831, 0.821, 0.852),
}
"""Row -> its scores in the order of `TASKS`."""
LAYERS = {
    "PaTH": "path(h2) swiglu path(h2) swiglu",
    "Transformer": "mh-attention(h2) swiglu mh-attention(h2) swiglu",
    "MesaNet": "mesa(h1) swiglu mesa(h1) swiglu",
    "mLSTM": "mlstm-v1(h1) swiglu mlstm-v1(h1) swiglu",
    "RWKV-7": "rwkv7(h1) swiglu rwkv7(h1) swiglu",
    "Mamba": "mamba mamba mamba mamba",
    "Gated DeltaNet": "gated-delta-net(h1) swiglu gated-delta-net(h1) swiglu",
    "DeltaNet": "delta-net(h1) swiglu delta-net(h1) swiglu",
    "GLA": "gla(h1) swiglu gla(h1) swiglu",
    "GSA": "gsa(h1,slots=64) swiglu gsa(h1,slots=64) swiglu",
    "sLSTM": "slstm swiglu slstm swiglu",
    "mLSTM, sLSTM": "mlstm swiglu slstm swiglu",
    "xLSTM[7:1], 8 blocks": "(mlstm swiglu)*7 slstm swiglu",
}
"""The published rows, then ours."""
GOAL, NEAR = 0.9, 0.02
QUICK = Table(
    name="mad-record-quick",
    layers=LAYERS,
    suite="smoke",
    seeds=seeds("1"),
    command="python benchmarks/mad_record.py --quick",
    tasks=("in-context-recall", "memorization"),
)
REDUCED = replace(
    QUICK,
    name="mad-record-reduced",
    suite="reduced",
    seeds=seeds("2"),
    command="python benchmarks/mad_record.py",
    tasks=(),
)
FULL = replace(
    REDUCED,
    name="mad-record-full",
    suite="full",
    seeds=seeds("1"),
    command="python benchmarks/mad_record.py --full --executor ray --ray-address auto "
    "--parallel 64",
)


def main():
    """Run what is missing, and write the table."""
    modes = {"quick": "two tasks of suite smoke", "full": "the published grid: for a cluster"}
    parser = table_flags(__doc__, **modes)
    parser.add_argument("--seeds", help="number of seeds, or a list")
    parser.add_argument("--rates", help="step sizes; the best one of each setting counts")
    parser.add_argument("--executor", default="local", choices=("local", "ray"))
    parser.add_argument("--ray-address", help="the cluster, such as auto")
    chosen = parser.parse_args()
    try:
        with places(chosen):
            return measured("mad_record", chosen, measure, packages=("torch", "mlx"))
    except MlxhogError as error:
        parser.error(str(error))


def measure(findings, chosen):
    """Run what is missing, and write the table."""
    parallel = chosen.parallel or len(cores())
    table = QUICK if chosen.quick else FULL if chosen.full else REDUCED
    if chosen.seeds is not None:
        table = replace(
            table, seeds=seeds(chosen.seeds), command=f"{table.command} --seeds {chosen.seeds}"
        )
    if chosen.rates is not None:
        table = replace(
            table, rates=rates(chosen.rates), command=f"{table.command} --rates {chosen.rates}"
        )
    how = ExecutionConfig(
        parallel=parallel,
        out=chosen.studies,
        executor=chosen.executor,
        ray_address=chosen.ray_address,
    )
    if chosen.dry_run:
        table.print_eta(how)
        return
    ranking, ended = table.run(how, quiet=chosen.quiet, table_only=chosen.table_only)
    suffix = {"reduced": "", "full": "_full"}.get(table.suite)
    folder = ROOT / "benchmarks" if suffix is not None else Path(how.out) / table.name
    path = Path(chosen.out or folder) / f"mad_record{suffix or ''}"
    text = markdown(table, ranking, parallel)
    document = {**table.document(ranking, parallel), "replication": comparison(table, ranking)}
    write(path, text, document)
    print(*answers(table, ranking), sep="\n")
    if ended == "interrupted":
        raise SystemExit(130)


# -- the comparison -------------------------------------------------------------------------------

DRAWS = 2000


def published(tasks):
    """Row -> the mean of its published scores on some tasks."""
    places = [TASKS.index(find(task).short) for task in tasks]
    return {name: fmean(scores[k] for k in places) for name, scores in PUBLISHED.items()}


def comparison(table, ranking):
    """Both rank correlations of the shared rows, of each task, and mLSTM's difference."""
    finished = [row for row in ranking.rows if row.status not in UNFINISHED]
    ours = {table.names[row.candidate]: row for row in finished}
    theirs = published(ranking.tasks) if ranking.tasks else {}
    shared = [name for name in theirs if name in ours]
    result = {"published": theirs, "shared": shared, "tasks": {}}
    if len(shared) > 2:
        scores = [ours[name].score for name in shared], [theirs[name] for name in shared]
        for word, correlation in (("spearman", spearman), ("kendall", kendall)):
            result[word] = astuple(RankCorrelation.of(*scores, correlation, draws=DRAWS))
        for task in ranking.tasks:
            own = published([task])
            pairs = [ours[name].tasks[task] for name in shared], [own[name] for name in shared]
            result["tasks"][task] = spearman(*pairs)
    if "mLSTM" in shared:
        row = ours["mLSTM"]
        result["mlstm"] = {"difference": row.score - theirs["mLSTM"], "interval": row.interval}
    return result


def answers(table, ranking):
    """The comparison in sentences."""
    result = comparison(table, ranking)
    lines = []
    for word in ("spearman", "kendall"):
        if word in result:
            rho, low, high = result[word]
            lines.append(
                f"{word.title()} of the {len(result['shared'])} shared rows: {rho:.2f} "
                f"(95 % {low:.2f} to {high:.2f}, bootstrap over rows)"
                + (f"; at least {GOAL}: {_told(low >= GOAL, high < GOAL)}" * (word == "spearman"))
            )
    if tasks := {find(task).short: rho for task, rho in result["tasks"].items()}:
        # undefined if all rows are equal
        texts = (
            f"{name} {'-' if math.isnan(rho) else f'{rho:.2f}'}" for name, rho in tasks.items()
        )
        lines.append(f"Spearman by task: {', '.join(texts)}")
    if "mlstm" in result:
        difference, interval = result["mlstm"].values()
        half = math.inf if interval is None else interval
        inside, outside = abs(difference) + half <= NEAR, abs(difference) - half > NEAR
        lines.append(
            f"mLSTM: {difference:+.3f} from the published score"
            + ("" if interval is None else f" (± {interval:.3f})")
            + (
                f"; within {NEAR}: {_told(inside, outside)}"
                if table.suite == "full"
                else "; other settings, so no replication of the score"
            )
        )
    return lines


def _told(yes, no):
    return "yes" if yes else "no" if no else "cannot be told"


def markdown(table, ranking, parallel):
    """The table with what it was made with and what it lacks."""
    theirs = published(ranking.tasks) if ranking.tasks else {}
    lines = [
        f"# Replication of a published MAD table, suite `{ranking.suite}`",
        "",
        f"    {table.command}",
        "",
        table.made(ranking, parallel),
        "",
        f"{MEANINGS} Published: github.com/HassanJbara/lin-attn-bench at ac6d5ab, the mean over "
        "the same tasks; rows without it are ours.",
        "",
        *table.rows(ranking.rows, ranking.tasks, theirs),
        "",
        *(f"- {answer}" for answer in answers(table, ranking)),
    ]
    if table.suite != "full":
        lines.append(f"- The published grid, for a cluster: `{FULL.command}`")
    return "\n".join([*lines, *table.facts(ranking)]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
