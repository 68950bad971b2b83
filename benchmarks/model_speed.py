"""Speed of one worker, beside the xlstm package and transformers at the same sizes.

    python benchmarks/model_speed.py                    every row, both thread counts
    python benchmarks/model_speed.py --quick            fewer turns, under 8 minutes
    python benchmarks/model_speed.py --only v1 cells    some of: train v1 cells growth memory decode
    python benchmarks/model_speed.py --only ops         where a step's time goes, by operator

Ours and the peers take turns, each in a process of its own with the same threads; a ratio is the
median of the turns' own ratios, so that a slow spell of the machine hits both sides. Ours does all
that a run does in a step (`language_models/ours.py`), a peer only what training needs
(`language_models/peers.py`).
"""

import sys

from harness.claims import flags, measured
from harness.machine import smallest
from language_models import peers
from language_models.decoding import decode
from language_models.operators import ops
from language_models.rows import Report, cells, growth, memory, training, v1


def main():
    """Measure what the flags ask for."""
    parser = flags(__doc__, parts=PARTS, quick="fewer and shorter turns")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of training steps")
    chosen = parser.parse_args()
    if lacking := peers.missing():
        print(
            f"not installed: {', '.join(lacking)}; this compares with other programs: "
            "python -m pip install -c constraints.txt -e '.[test,peers]'",
            file=sys.stderr,
        )
        return 3

    packages = ("torch", "mlx", "xlstm", "mlstm_kernels", "transformers")
    return measured("model_speed", chosen, measure, packages=packages, quiet=True)


def measure(findings, chosen):
    """Measure the parts."""
    report = Report(findings.claims, findings.results, findings.twins, quick=chosen.quick)
    for name in chosen.only or UNASKED:
        PARTS[name](report, smallest(chosen.threads[:1], chosen.threads))


PARTS = {
    "train": training,
    "v1": v1,
    "cells": cells,
    "growth": growth,
    "memory": memory,
    "decode": decode,
    "ops": ops,
}
UNASKED = [name for name in PARTS if name != "ops"]


if __name__ == "__main__":
    raise SystemExit(main())
