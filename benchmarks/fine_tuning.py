"""What does an adapter lose beside full fine-tuning, and lock-free beside synchronous training?

    python benchmarks/fine_tuning.py --tune         the learning rate of every arm, seed 0
    python benchmarks/fine_tuning.py                three seeds

The base is `10m` after one pass over the bundled corpus, 2.03 M tokens, a quarter of an hour;
`--base RUN` takes one that is there. The text is docs/ of this checkout, read once: technical
English, tables and commands, which the corpus of speeches has not. Budgets are tokens, so a busy
machine changes no loss. Every arm has the default optimizer and the same validation text. The
learning rates of full fine-tuning and of rank 16 are searched with as many trials each, one worker
each; all adapters have that of rank 16.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

from harness.estimates import Mean
from harness.frame import run, say
from harness.interleaved import on_cores
from harness.machine import ROOT, smallest
from harness.tuning import around, settings, tune
from training.recording import end_bits

from mlxhog import TrainConfig, train
from mlxhog.training.plan.decide import make_plan

BASE_TOKENS = 2_030_000
FULL, ADAPTER, WHOLE = "full", "rank 16", "rank 16, embeddings and head whole"
SYNC, HOGWILD = "rank 16, sync, 2 workers", "rank 16, hogwild, 2 workers"
ALL_ARMS = {
    FULL: {},
    **{f"rank {rank}": {"adapter": f"lora(rank={rank})"} for rank in (16, 64)},
    WHOLE: {"adapter": "lora(rank=16,modules_to_save=embeddings lm_head)"},
    **{arm: {"adapter": "lora(rank=16)", "strategy": strategy, "workers": "torch:cpu*2"}
       for arm, strategy in ((SYNC, "sync"), (HOGWILD, "hogwild"))},
}  # fmt: skip
AXES = {FULL: {"lr": around(0.0016, 2.5, 5)}, ADAPTER: {"lr": around(0.025, 2.5, 5)}}
"""Learning rates that are tried; all adapters take that of rank 16."""
TOKENS, VALIDATION = 114_688, 65_536
"""Of a fine-tuning, about one pass over the text; of the validation text, at most."""
MAX_COST, MAX_SHARE = 0.03, 0.1
"""Bits per byte that rank 16 may lose beside full fine-tuning, with this share of its arena."""
MAX_ASYNC_COST = 0.01


def with_base(chosen, act):
    """Do something with the base, which is trained first if it is not named."""
    if chosen.base is not None:
        return act(chosen.base)
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as folder:
        config = TrainConfig(
            runs_dir=folder, sample_every="off", **smallest(
                {"model": "tiny", "tokenizer": "bytes", "data": str(ROOT / "docs"), "steps": 2},
                {"model": "10m", "tokens": BASE_TOKENS, "workers": "torch:cpu*2"},
            ),
        )  # fmt: skip
        say("training the base")
        return act(Path(train(config, observer=None).run))


def options(base, arm, point, seed):
    """The options of one fine-tuning."""
    return {
        "init_from": str(base), "data": str(ROOT / "docs"),
        "batch_size": 4, "seq_len": 256, "tokens": TOKENS, "seed": seed, **ALL_ARMS[arm], **point,
    }  # fmt: skip


def end(base, arm, point, seed):
    """Bits per byte at the end of one fine-tuning."""
    bits = end_bits(VALIDATION, **options(base, arm, point, seed))
    say(f"seed {seed}  {arm}, {point}: {bits:.4f} bits per byte")
    return bits


def measure(findings, chosen):
    """Fine-tune every arm with each seed."""
    known = settings("fine_tuning", smallest((), AXES))
    points = {arm: known.get(FULL if arm == FULL else ADAPTER, {}) for arm in ALL_ARMS}

    def judged(base):
        jobs = [(base, arm, points[arm], seed) for seed in chosen.seeds for arm in ALL_ARMS]
        alone = [job for job in jobs if "workers" not in ALL_ARMS[job[1]]]
        ends = dict(zip(map(repr, alone), on_cores(end, alone), strict=True))
        bits = {arm: [] for arm in ALL_ARMS}
        for job in jobs:
            bits[job[1]].append(ends[repr(job)] if repr(job) in ends else end(*job))
        judge(findings, bits, {arm: arena_bytes(base, arm) for arm in ALL_ARMS}, points)
        status = json.loads((base / "run.json").read_text())
        of_base = {"tokens": status["tokens"], "bits per byte": status["best"]["bits_per_byte"]}
        findings.results["base"] = of_base

    with_base(chosen, judged)


def arena_bytes(base, arm):
    """Bytes of the parameters and optimizer state in shared memory."""
    return make_plan(TrainConfig(**options(base, arm, {}, 1))).arena_bytes


def judge(findings, bits, arena, points):
    """Claim what adapters lose beside full fine-tuning, and lock-free beside synchronous."""
    findings.table(
        {"arm": arm, **points[arm], "arena bytes": arena[arm],
         "bits per byte": [round(one, 4) for one in bits[arm]]}
        for arm in ALL_ARMS
    )  # fmt: skip
    most = partial(findings.at_most, timing=False)
    for arm in (ADAPTER, "rank 64", WHOLE):
        cost = Mean.of_differences(bits[arm], bits[FULL])
        most(f"bits per byte more of {arm} than of full fine-tuning", cost, MAX_COST)
    most("arena of rank 16, share of that of full", arena[ADAPTER] / arena[FULL], MAX_SHARE)
    cost = Mean.of_differences(bits[HOGWILD], bits[SYNC])
    most("bits per byte more of hogwild than of sync", cost, MAX_ASYNC_COST)


def tuning(chosen):
    """Search the learning rate of each arm, with seed 0."""
    with_base(chosen, lambda base: tune("fine_tuning", AXES, lambda a, p: end(base, a, p, 0)))


if __name__ == "__main__":
    run(
        __doc__, measure, actions={"tune": tuning}, packages=("torch",), seeds=(3, 5),
        options={"--base": {"type": Path, "metavar": "RUN", "help": "the run of a base"}},
    )  # fmt: skip
