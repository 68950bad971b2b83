"""Training steps of whole models beside the peers': tokens per second, arithmetic, memory."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median

from _arms import Arm, Program, Turns
from _harness import Sample
from _model_ours import large
from _report import MLX, OURS, PACKAGE, PEERS, TORCH, TRANSFORMERS, Report
from _sizes import LARGE_VOCABULARY, LONG, SEVEN_TO_ONE, SMALL, WIDE, LargeSize

from mlxhog.models import families

TORCH_SGEMM, OWN_SGEMM = "sgemm, torch", "sgemm, mlxhog"
LIBRARIES = ("torch", "xlstm.xlstm_large.model", "transformers")


def large_programs(size: LargeSize) -> dict[str, Program]:
    """The four programs that train xLSTM Large."""
    return {
        TORCH: Program(OURS, "train_large", {"size": size, "backend": "torch:cpu"}),
        MLX: Program(OURS, "train_large", {"size": size, "backend": "mlx:cpu"}, ("mlx.core",)),
        PACKAGE: Program(PEERS, "train_xlstm_large", {"size": size}, LIBRARIES),
        TRANSFORMERS: Program(PEERS, "train_transformers", {"size": size}, LIBRARIES),
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
        TORCH_SGEMM: Program(OURS, "products", {**options, "library": "torch"}),
        OWN_SGEMM: Program(OURS, "products", {**options, "library": "mlxhog"}),
    }


def product_shapes(size: LargeSize) -> list[tuple[int, int]]:
    """(in, out) of a block's maps: q and k together, v, o, out; gate, up; down."""
    d, U = size.d, large(size).ffn_dim
    return [(d, d)] * 4 + [(d, U)] * 2 + [(U, d)]


def arithmetic(report: Report, row: str, size: LargeSize, found: Turns) -> None:
    """Useful work of a training step beside the rates of plain matrix products.

    A step costs 6 operations for each parameter and token: 2 forward, 4 backward. The claim is on
    the sgemm that everybody has, torch's; the share of our own, faster product is shown beside it.
    """
    products = sum(2 * size.tokens * m * n for m, n in product_shapes(size))
    work = 6 * families.param_count(large(size)) * size.tokens
    steps = found.seconds[TORCH]
    gflops = {"step": Sample.of([work / s / 1e9 for s in steps])}
    for name in product_programs(size):
        gflops[name] = Sample.of([products / s / 1e9 for s in found.seconds[name]])
        shares = [
            work / step / (products / s) for step, s in zip(steps, found.seconds[name], strict=True)
        ]
        report.results[row] |= {f"share of {name}": Sample.of(shares)}
        if name == TORCH_SGEMM:
            claim = f"{row}: {TORCH}, 6 x parameters x tokens_per_s / sgemm"
            report.at_least(claim, median(shares), 0.85)
    print("  " + ", ".join(f"{name} {rate.median:.0f} GFLOP/s" for name, rate in gflops.items()))
    report.results[row] |= {"gflops": gflops}


def v1(report: Report, thread_counts: list[int]) -> None:
    """Training steps of seven mLSTM blocks and one sLSTM block."""
    size = SEVEN_TO_ONE
    programs = {
        TORCH: Program(OURS, "train_v1", {"size": size, "backend": "torch:cpu"}),
        MLX: Program(OURS, "train_v1", {"size": size, "backend": "mlx:cpu"}, ("mlx.core",)),
        PACKAGE: Program(PEERS, "train_xlstm_v1", {"size": size}),
    }
    for threads in thread_counts:
        row = f"{size.name}, threads {threads}"
        found = report.measure(row, programs, size.tokens, threads)
        report.at_least(f"{row}: {TORCH} / {PACKAGE}", found.ratio(PACKAGE, TORCH), 3.0)
        report.at_least(f"{row}: {MLX} / {TORCH}", found.ratio(TORCH, MLX), 0.5)


def memory(report: Report, thread_counts: list[int]) -> None:
    """Peak memory of a training step of long sequences."""
    row = f"memory of a training step, {LONG.name}"
    peaks = {}
    for name, program in large_programs(LONG).items():
        arm = Arm(program, threads=thread_counts[-1])
        arm.ready()
        arm.run(0.0)
        peaks[name] = arm.close()
    print(f"\n{row}: peak beyond the libraries, and with them, MB")
    for name, peak in peaks.items():
        print(f"  {name:16} {peak.added / 1e6:8.0f} {peak.most / 1e6:8.0f}")
    report.results[row] = {name: asdict(peak) for name, peak in peaks.items()}
    share = peaks[TORCH].added / peaks[PACKAGE].added
    report.at_most(f"{row}: {TORCH} / {PACKAGE}", share, 0.7, timing=False)
