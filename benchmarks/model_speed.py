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

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from harness.claims import LoadWatch, finish, own_cpu_s, wait_until_quiet
from language_models import peers
from language_models.decoding import decode
from language_models.operators import ops
from language_models.rows import Report, cells, growth, memory, training, v1


def main() -> int:
    """Measure what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=UNASKED, metavar="PART")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of training steps")
    chosen = parser.parse_args()
    if lacking := peers.missing():
        print(
            f"not installed: {', '.join(lacking)}; this compares with other programs: "
            "python -m pip install -c constraints.txt -e '.[test,peers]'",
            file=sys.stderr,
        )
        return 3
    wait_until_quiet(patience_s=10.0 if chosen.quick else 60.0)
    watch, cpu = LoadWatch(), own_cpu_s()
    report = Report(quick=chosen.quick)
    for name in chosen.only:
        PARTS[name](report, chosen.threads)
    return finish(
        "model_speed",
        report.claims,
        others_load=watch.stop(own_cpu_s() - cpu),
        results=report.results,
        packages=("mlxhog", "torch", "mlx", "xlstm", "mlstm_kernels", "transformers", "numpy"),
    )


PARTS: dict[str, Callable[[Report, list[int]], None]] = {
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
