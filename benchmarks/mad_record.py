"""Replication of a published MAD table with xLSTM: rank correlation with it, and new rows.

    python benchmarks/mad_record.py --quick      two tasks, one seed: a few minutes, proves the way
    python benchmarks/mad_record.py              the reduced grid, 2 seeds: about 7 hours on 2 cores
    python benchmarks/mad_record.py --full --executor ray --ray-address auto --parallel 64
                                                 the published grid, 396 runs a row, on a cluster

It is a study, studies/mad-record-...: interrupt it at any time, and the same command continues;
`mlxhog mad leaderboard` shows it. Scores are means over the tasks of `acc_macro`.

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

import sys
import tempfile
from statistics import fmean

from harness.estimates import Rank
from harness.frame import run
from harness.machine import cores, smallest

from mlxhog.mad.options import ExecutionConfig, read_rates, read_seeds
from mlxhog.mad.report.leaderboard import read_ranking
from mlxhog.mad.report.progress import shown
from mlxhog.mad.scores import UNFINISHED
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.study.session import execute
from mlxhog.mad.study.store import open_store
from mlxhog.mad.tasks import find
from mlxhog.models.mad.sequence import canonical, parse

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
GOAL = 0.9
SUITES = {"quick": ("smoke", "1"), "reduced": ("reduced", "2"), "full": ("full", "1")}


def published(name, tasks):
    """The mean of a row's published scores on some tasks."""
    return fmean(PUBLISHED[name][TASKS.index(find(task).short)] for task in tasks)


def measure(findings, chosen):
    """Run what is missing of the study, and compare with the published table."""
    quick = chosen.tiny or "--quick" in sys.argv  # without a flag it is neither
    mode = "quick" if quick else "full" if chosen.full else "reduced"
    own, n = SUITES[mode]
    names = {canonical(parse(layers)): name for name, layers in LAYERS.items()}
    study = StudyDefinition(
        candidates=tuple(names), suite=own, seeds=read_seeds(chosen.seeds or n),
        tasks=("in-context-recall", "memorization") if mode == "quick" else (),
        rates=read_rates(chosen.rates) if chosen.rates else (),
        recipe=smallest({"steps": 2, "eval_every": 2}, {}),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        root = scratch if chosen.tiny else chosen.studies
        store = open_store(study, root, f"mad-record-{mode}")
        how = ExecutionConfig(
            parallel=chosen.parallel or len(cores()), studies_dir=root, executor=chosen.executor,
            ray_address=chosen.ray_address,
        )  # fmt: skip
        with shown(sys.stderr, quiet=chosen.tiny) as show:
            if execute(store, study, how, show).status == "interrupted":
                raise KeyboardInterrupt
        ranking = read_ranking(store)
    rows = {names[row.candidate]: row for row in ranking.rows if row.status not in UNFINISHED}
    findings.table(
        {"mixers": name, "score": row.score, "± 95 %": row.interval,
         "published": published(name, ranking.tasks) if name in PUBLISHED else None,
         **{find(task).short: row.tasks.get(task) for task in ranking.tasks},
         "params": row.params, "state bytes": row.state_bytes}
        for name, row in rows.items()
    )  # fmt: skip
    shared = [name for name in PUBLISHED if name in rows]
    if len(shared) > 2:
        theirs = [published(name, ranking.tasks) for name in shared]
        ours = [rows[name].score for name in shared]
        name = f"Spearman's rho of the {len(shared)} shared rows"
        findings.at_least(name, Rank.of(ours, theirs), GOAL, timing=False)


if __name__ == "__main__":
    run(
        __doc__, measure,
        modes={"quick": "two tasks of suite smoke", "full": "the published grid: for a cluster"},
        options={
            "--parallel": {"type": int, "help": "runs at once; by default one per core"},
            "--studies": {"default": "studies", "help": "folder of the study"},
            "--seeds": {"help": "number of seeds, or a list"},
            "--rates": {"help": "learning rates; the best one of each setting counts"},
            "--executor": {"default": "local", "choices": ("local", "ray")},
            "--ray-address": {"help": "the cluster, such as auto"},
        },
        packages=("torch", "mlx"),
    )  # fmt: skip
