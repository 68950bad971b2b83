"""Which preset and tokenizer are best for a text and a time, and which weight decay if it repeats?

    nice python benchmarks/presets_by_text.py --full --rows rows.jsonl --limit 60

sizes   presets and tokenizers on .3 to 10 MB of the bundled text (whole addresses, evenly spaced),
        with the tokens that two cores train in 1, 10 and 60 minutes (`PER_MINUTE`): the best
        validation evaluation, which is the checkpoint that a run keeps, and the last
vocabularies
        bytes and vocabularies of 512 to 16,384 tokens for `minute` on .2 to 10 MB, in 1 and 10
        minutes: the rule of `--tokenizer auto` (`mlxhog.data.tokenizers`)
decay   constant weight decay by parameters per token: .1, the default, and higher
Budgets are tokens, so a busy machine changes no loss. Runs of `sizes` and `vocabularies` end early
where four evaluations bring no new best. `--rows FILE` gets every finished row, and what it has is
not trained again; `--limit MINUTES` starts no row later. Rows that are missing are not
measured. The rows of `sizes` are those of `mlxhog.training.plan.sizes`.
"""

import json
import tempfile
import time
from pathlib import Path

from harness.frame import each, run, say
from harness.machine import smallest

from mlxhog import TrainConfig, train
from mlxhog.base import plain_json
from mlxhog.base.durable import append_lines
from mlxhog.data.sotu import read_sotu
from mlxhog.training.plan.decide import make_plan

PER_MINUTE = {"minute": 960_000, "minute-ngrams": 960_000, "tiny": 960_000, "5m": 160_000}
"""Tokens that two cores train, cautiously; the tokenizer matters little: the softmax is sampled."""
VALIDATION_BYTES = 10_000  # of each of the 19 addresses that the bundled split holds out
DEFAULT = "minute", "sotu"
ARMS = (DEFAULT, ("minute", "bpe:1024"), ("minute", "bytes"), ("minute-ngrams", "sotu"),
        ("5m", "bpe:1024"), ("minute", "bpe:4096"), ("5m", "bytes"))  # fmt: skip
NEAR = DEFAULT, ("minute-ngrams", "sotu"), ("minute", "bpe:4096"), ("5m", "bpe:1024")
FOR_AN_HOUR = DEFAULT, ("minute", "bpe:1024"), ("5m", "bpe:1024")
SIZES = [
    (mb, minutes, *arm)
    for minutes, sizes, arms in (
        (1, (0.3, 1, 3, 10), ARMS), (10, (0.3, 1), ARMS), (10, (3, 10), NEAR),
        (60, (1, 3), FOR_AN_HOUR),
    ) for mb in sizes for arm in arms
]  # fmt: skip
"""Megabytes of text, minutes, preset, tokenizer."""
VOCABULARIES = [
    (mb, minutes, "minute", f"bpe:{size}" if size else "bytes")
    for minutes, sizes in (
        (1, {0.2: (0, 512), 0.3: (0, 512, 1024), 0.4: (0, 512, 1024), 0.5: (0, 512, 1024),
             0.7: (0, 512, 1024, 2048), 1: (512, 1024, 2048, 4096), 1.5: (1024, 2048, 4096, 8192),
             2: (1024, 2048, 4096, 8192),
             3: (1024, 2048, 4096, 8192), 5: (2048, 4096, 8192), 10: (4096, 8192, 16_384)}),
        (10, {0.5: (0, 512, 1024)}),
    ) for mb, vocabularies in sizes.items() for size in vocabularies
]  # fmt: skip
DECAYS = [(64, tokens, decay) for tokens in (35, 140, 70, 280) for decay in (0.1, 1.0)]
"""Width of `minute` with bpe:1024, thousands of tokens of text, and the decay."""


def texts(folder, n_bytes):
    """Write training and validation text; evenly spaced addresses of about this many bytes."""
    every = [(k, address.text) for k, address in enumerate(read_sotu())]
    train_texts = [text for k, text in every if k % 12 != 5]
    share = min(1.0, n_bytes / sum(len(text.encode()) for text in train_texts))
    chosen = [text for k, text in enumerate(train_texts) if int((k + 1) * share) > int(k * share)]
    validation = [text[:VALIDATION_BYTES] for k, text in every if k % 12 == 5]
    for name, documents in (("train", chosen), ("validation", validation)):
        lines = [json.dumps({"text": text}) for text in documents]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def trained(n_bytes, *, steps=None, epochs=None, evaluations, **options):
    """Train on a part of the bundled text; returns what is known of the run."""
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as name:
        folder = Path(name)
        texts(folder, n_bytes)
        config = TrainConfig(
            data=name, steps=steps or 1, workers=1, threads=1, sample_every="off", save_every="off",
            runs_dir=str(folder / "runs"), **options,
        )  # fmt: skip
        plan = make_plan(config)
        per_epoch = plan.epoch_tokens / plan.strategy.tokens_per_step
        steps = smallest(2, steps or round(epochs * per_epoch))
        every = str(max(1, round(steps / evaluations)))
        result = train(config.having(steps=steps, eval_every=every), observer=None)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        best = json.loads((Path(result.run) / "run.json").read_text())["best"]
        return {
            "parameters": plan.parameters, "epoch_tokens": plan.epoch_tokens,
            "epochs": steps / per_epoch, "best": best["bits_per_byte"],
            "best_epoch": best["step"] / per_epoch, "last": result.val_bits_per_byte,
            "steps": result.steps, "lr": plan.config.top_lr,
        }  # fmt: skip


def of_size(mb, minutes, preset, tokenizer, seed):
    """Train one cell of the table."""
    steps = PER_MINUTE[preset] * minutes // 1024
    options = {"model": preset, "tokenizer": tokenizer, "seed": seed, "patience": 4}
    return trained(mb * 1e6, steps=steps, evaluations=12 if minutes == 1 else 60, **options)


def of_decay(width, tokens, decay, seed):
    """Train six epochs with a weight decay."""
    options = {"model": "minute", "tokenizer": "bpe:1024", "weight_decay": decay, "seed": seed}
    return trained(tokens * 3100, epochs=6, evaluations=12, set=f"hidden_size={width}", **options)


def part(name, cells, train_cell):
    """A part of the benchmark: its cells, by the seeds, as far as the limit allows."""

    def measure(findings, chosen):
        known = {}
        if chosen.rows is not None and chosen.rows.exists():
            lines = plain_json.objects(chosen.rows)
            known = {(row["part"], *row["cell"], row["seed"]): row for row in lines}
        end_s = time.monotonic() + 60 * chosen.limit
        rows = []
        for seed in chosen.seeds:
            for cell in smallest(cells[:1], cells):
                row = known.get((name, *cell, seed))
                if row is None and time.monotonic() < end_s:
                    row = {"part": name, "cell": cell, "seed": seed}
                    row |= train_cell(*cell, seed)
                    if chosen.rows is not None:
                        append_lines(chosen.rows, json.dumps(row).encode() + b"\n")
                    say(row)
                if row is not None:
                    rows.append(row)
        findings.table({**row, "cell": " ".join(map(str, row["cell"]))} for row in rows)
        findings.results[name] = rows

    return measure


PARTS = {
    "sizes": part("sizes", SIZES, of_size),
    "vocabularies": part("vocabularies", VOCABULARIES, of_size),
    "decay": part("decay", DECAYS, of_decay),
}
OPTIONS = {
    "--rows": {"type": Path, "metavar": "FILE", "help": "rows of earlier calls, and of this one"},
    "--limit": {"type": float, "default": 60.0, "metavar": "MINUTES", "help": "start no row later"},
}

if __name__ == "__main__":
    run(__doc__, each(PARTS), only=PARTS, packages=("torch",), seeds=(1, 3), options=OPTIONS)
