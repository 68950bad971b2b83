"""What moments in bfloat16 cost in bits per byte, at a short budget.

    nice python benchmarks/moments.py           3 seeds, 102,400 tokens each
    python benchmarks/moments.py --full         5 seeds, 307,200 tokens

The default model on the bundled corpus, one worker on one core, with AdamW and with Muon at their
learning rates. After each update the moments are left as they are, rounded to the nearest bfloat16,
or rounded stochastically (`training/rounded_moments.py`). The budget is tokens, so a busy machine
changes no loss; what a minute or ten cost is not measured here.
"""

from pathlib import Path

from harness.estimates import Mean
from harness.frame import run, say
from harness.interleaved import take_turns
from harness.machine import smallest
from training.recording import end_bits

from mlxhog.config import plugins

PLUGIN = Path(__file__).parent / "training" / "rounded_moments.py"
WAYS = ("none", "nearest", "stochastic")
ARMS = [(rule, way) for rule in ("adamw", "muon") for way in WAYS]
MAX_COST = 0.01
"""Bits per byte that bfloat16 may cost: the limit that `--dtype bfloat16` had from the start."""


def measure(findings, chosen):
    """Train every arm with each seed."""
    plugins.load(PLUGIN)
    steps = chosen.pick(tiny=2, quick=100, full=300)

    def end(arm, seed):
        rule, way = arm
        model = smallest({}, {"model": "minute", "tokenizer": "sotu"})
        bits = end_bits(
            65_536, **model, optimizer=f"rounded_{rule}(rounding={way})", batch_size=4,
            seq_len=256, steps=steps, seed=seed,
        )  # fmt: skip
        say(f"seed {seed}  {rule}, {way}: {bits:.4f} bits per byte")
        return bits

    judge(findings, take_turns(chosen.seeds, ARMS, end))
    findings.results["tokens"] = steps * 1024


def judge(findings, bits):
    """Claim what rounding costs: differences of pairs with one seed."""
    for rule, way in ARMS:
        name = f"{rule}, moments rounded: {way}"
        row = {"arm": name, "bits per byte": [round(one, 6) for one in bits[rule, way]]}
        if way != "none":
            cost = Mean.of_differences(bits[rule, way], bits[rule, "none"])
            row["more"] = cost.spelt(".4f")
            findings.at_most(f"{name}, bits per byte more", cost, MAX_COST, timing=False)
        findings.table([row])


if __name__ == "__main__":
    run(__doc__, measure, packages=("torch",), seeds=(3, 5))
