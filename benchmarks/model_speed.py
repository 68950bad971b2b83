"""How fast is one worker, beside the xlstm package and transformers at the same sizes?

    python benchmarks/model_speed.py                    every row, both thread counts
    python benchmarks/model_speed.py --quick            fewer turns, under 8 minutes
    python benchmarks/model_speed.py --only train       one part: train, v1, cells, growth, memory

Ours and the peers take turns, each in a process of its own with the same threads; a ratio is the
median of the turns' own ratios, so that a slow spell of the machine hits both sides. Ours does all
that a run does in a step (`_model_ours.py`), a peer only what training needs (`_model_peers.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import _model_peers
from _arms import Program, Turns, in_turns
from _harness import Claim, LoadWatch, Sample, finish, own_cpu_s, wait_until_quiet
from _model_ours import large
from _sizes import LARGE_VOCABULARY, SMALL, WIDE, LargeSize

from mlxhog.models import families

OURS, PEERS = "_model_ours", "_model_peers"
TORCH, MLX, PACKAGE, TRANSFORMERS = "ours, torch", "ours, mlx", "xlstm", "transformers"


@dataclass
class Report:
    """What the parts found so far."""

    quick: bool
    claims: list[Claim] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """Turns of every arm; a median wants at least five."""
        return 5 if self.quick else 9

    @property
    def seconds(self) -> float:
        """Least length of one arm's turn."""
        return 0.4 if self.quick else 1.0

    def measure(
        self, row: str, programs: Mapping[str, Program], tokens: int, threads: int
    ) -> Turns:
        """Let programs take turns; print and keep their tokens per second.

        Args:
            row: name in the table and in the JSON line.
            programs: by name; all work through the same tokens.
            tokens: in one step.
            threads: of each.
        """
        found = in_turns(programs, threads=threads, turns=self.turns, seconds=self.seconds)
        rates = {
            name: Sample.of([tokens / s for s in seconds])
            for name, seconds in found.seconds.items()
        }
        print(f"\n{row}: tokens per second, median (range)")
        for name, rate in rates.items():
            print(f"  {name:16} {rate.median:10,.0f}  ({rate.low:,.0f} - {rate.high:,.0f})")
        sys.stdout.flush()
        self.results[row] = {"tokens_per_s": rates}
        return found

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Claim a ratio."""
        self.claims.append(Claim(name, value, ">=", limit))


def main() -> int:
    """Measure what the flags ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of training steps")
    chosen = parser.parse_args()
    if lacking := _model_peers.missing():
        print(
            f"not installed: {', '.join(lacking)}; this compares with other programs: "
            "python -m pip install -c constraints.txt -e '.[test,peers]'",
            file=sys.stderr,
        )
        return 3
    wait_until_quiet(patience_s=10.0 if chosen.quick else 60.0)
    watch, cpu = LoadWatch(), own_cpu_s()
    report = Report(chosen.quick)
    for name in chosen.only:
        PARTS[name](report, chosen.threads)
    return finish(
        "model_speed",
        report.claims,
        others_load=watch.stop(own_cpu_s() - cpu),
        results=report.results,
        packages=("mlxhog", "torch", "mlx", "xlstm", "mlstm_kernels", "transformers", "numpy"),
    )


# -- training steps -------------------------------------------------------------------------------


def large_programs(size: LargeSize) -> dict[str, Program]:
    """The four programs that train xLSTM Large."""
    return {
        TORCH: Program(OURS, "train_large", {"size": size, "backend": "torch:cpu"}),
        MLX: Program(OURS, "train_large", {"size": size, "backend": "mlx:cpu"}),
        PACKAGE: Program(PEERS, "train_xlstm_large", {"size": size}),
        TRANSFORMERS: Program(PEERS, "train_transformers", {"size": size}),
    }


def training(report: Report, thread_counts: list[int]) -> None:
    """Training steps of xLSTM Large at three sizes."""
    for size, limit in ((SMALL, 1.4), (WIDE, 1.05), (LARGE_VOCABULARY, 1.5)):
        for threads in thread_counts:
            row = f"{size.name}, {threads} thread{'s' * (threads > 1)}"
            programs = large_programs(size) | (product_programs(size) if size is WIDE else {})
            found = report.measure(row, programs, size.tokens, threads)
            for peer in (PACKAGE, TRANSFORMERS):
                report.at_least(f"{row}: {TORCH} / {peer}", found.ratio(peer, TORCH), limit)
            report.at_least(f"{row}: {MLX} / {TORCH}", found.ratio(TORCH, MLX), 0.5)
            if size is WIDE:
                arithmetic(report, row, size, found)


def product_programs(size: LargeSize) -> dict[str, Program]:
    """The matrix products of one block, by torch's library and by our own."""
    options = {"rows": size.tokens, "shapes": product_shapes(size)}
    return {
        f"sgemm, {library}": Program(OURS, "products", {**options, "library": library})
        for library in ("torch", "mlxhog")
    }


def product_shapes(size: LargeSize) -> list[tuple[int, int]]:
    """(in, out) of a block's maps: q and k together, v, o, out; gate, up; down."""
    d, U = size.d, large(size).ffn_dim
    return [(d, d)] * 4 + [(d, U)] * 2 + [(U, d)]


def arithmetic(report: Report, row: str, size: LargeSize, found: Turns) -> None:
    """Useful work of a training step beside the rate of plain matrix products.

    A step costs 6 operations for each parameter and token: 2 forward, 4 backward.
    """
    products = sum(2 * size.tokens * m * n for m, n in product_shapes(size))
    work = 6 * families.param_count(large(size)) * size.tokens
    seconds = found.seconds
    shares, rates = [], []
    for turn, step_s in enumerate(seconds[TORCH]):
        rate = max(products / seconds[name][turn] for name in product_programs(size))
        shares.append(work / step_s / rate)
        rates.append(rate)
    gflops = {"step": Sample.of([work / s / 1e9 for s in seconds[TORCH]])}
    gflops["sgemm"] = Sample.of([rate / 1e9 for rate in rates])
    print("  " + ", ".join(f"{name} {rate.median:.0f} GFLOP/s" for name, rate in gflops.items()))
    report.results[row] |= {"gflops": gflops}
    report.at_least(f"{row}: {TORCH}, 6 x parameters x tokens_per_s / sgemm", median(shares), 0.85)


PARTS: dict[str, Callable[[Report, list[int]], None]] = {"train": training}


if __name__ == "__main__":
    raise SystemExit(main())
