"""What `--dtype bfloat16` costs in bits per byte beside float32, in equal time.

    python benchmarks/mixed_precision.py          a minute each, up to eight pairs: 20 minutes
    python benchmarks/mixed_precision.py --full   then ten minutes each, up to four pairs: 85 more

The default model, workers and text, by `mlxhog.compare`, which ends at a clear answer. On CPUs with
AMX or AVX512-BF16 products in bfloat16 are faster, so the same time trains more tokens; elsewhere
they are converted, and the answer is of no use.
"""

import tempfile
from pathlib import Path

from harness.estimates import Estimate
from harness.frame import run, say
from harness.machine import ROOT, smallest

import mlxhog
from mlxhog._native import ops
from mlxhog.experiments.paired_test import ERROR

MAX_COST = 0.01
"""Bits per byte that bfloat16 may cost: the limit that `--dtype bfloat16` had from the start."""
PAIRS = {60: 8, 600: 4}
"""By seconds of training: the most pairs."""
TINY = {"data": str(ROOT / "docs"), "steps": 4, "pairs": 2, "val_subset_tokens": 2048}


def measure(findings, chosen):
    """Compare both types at each budget."""
    findings.results["bfloat16_kernel"] = ops.bfloat16_kernel()
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as temporary:
        for seconds in chosen.pick(tiny=[60], quick=[60], full=list(PAIRS)):
            folder = (chosen.folder or Path(temporary)) / str(seconds)
            terms = smallest(TINY, {"time": seconds, "pairs": PAIRS[seconds]})
            judge(findings, seconds, mlxhog.compare(
                {"dtype": "bfloat16"}, {"dtype": "float32"}, folder=folder, observer=tell, **terms,
            ))  # fmt: skip


def tell(pair):
    """Print a pair."""
    say(
        f"seed {pair.seed}  bfloat16 {pair.a.bits_per_byte:.4f} bits per byte, {pair.a.tokens:,} "
        f"tokens; float32 {pair.b.bits_per_byte:.4f}, {pair.b.tokens:,}"
    )


def judge(findings, seconds, found):
    """Claim what bfloat16 costs, by the interval that holds wherever the comparison ended."""
    low, high = (-end for end in reversed(found.interval))
    cost = Estimate(
        -found.difference, low, high, len(found.pairs),
        p=lambda limit: 1.0 if low <= limit <= high else ERROR,
    )  # fmt: skip
    say(found.answer)
    findings.at_most(f"bits per byte more of bfloat16, {seconds} s each", cost, MAX_COST)
    findings.table(
        {"seconds": seconds, "seed": pair.seed, "dtype": dtype,
         "bits per byte": round(side.bits_per_byte, 5), "tokens": side.tokens}
        for pair in found.pairs
        for dtype, side in (("bfloat16", pair.a), ("float32", pair.b))
    )  # fmt: skip


if __name__ == "__main__":
    run(
        __doc__, measure, packages=("torch", "mlx"), quiet=True,
        options={"--folder": {"type": Path, "metavar": "DIR", "help": "of the pairs; again it "
                              "continues"}},
    )  # fmt: skip
