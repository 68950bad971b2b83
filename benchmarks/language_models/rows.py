"""The rows of `model_speed.py`: training steps, cells and memory, ours beside the peers'."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace

from harness.claims import Findings, Sample
from harness.estimates import Ratio
from harness.interleaved import Arm, Program, in_turns
from harness.machine import smallest
from language_models.ours import large
from language_models.sizes import (
    LARGE_VOCABULARY,
    LONG,
    SEVEN_TO_ONE,
    SMALL,
    WIDE,
    MLSTMSize,
    SLSTMSize,
)

from mlxhog.models import families

OURS, PEERS = "language_models.ours", "language_models.peers"
TORCH, MLX, PACKAGE, TRANSFORMERS = "ours, torch", "ours, mlx", "xlstm", "transformers"
KERNELS, VANILLA = "mlstm_kernels", "xlstm, vanilla"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
PARALLEL_LENGTHS = (512, 1024, 2048)
TORCH_SGEMM, OWN_SGEMM = "sgemm, torch", "sgemm, mlxhog"
LIBRARIES = ("torch", "xlstm.xlstm_large.model", "transformers")


@dataclass(kw_only=True)
class Report(Findings):
    """Findings of `model_speed.py`: rows of programs that take turns."""

    quick: bool

    @property
    def turns(self):
        """Turns of every arm; a median wants at least five."""
        return 5 if self.quick else 9

    @property
    def seconds(self):
        """Least length of one arm's turn."""
        return 0.4 if self.quick else 1.0

    def measure(self, row, programs, tokens, threads):
        """Let programs take turns; print and keep their tokens per second.

        Args:
            row: name in the table and in the JSON line.
            programs: by name; all work through the same tokens.
            tokens: in one step.
            threads: of each.
        """
        turns = in_turns(programs, threads=threads, turns=self.turns, seconds=self.seconds)
        first = next(iter(programs))
        self.same(f"{row}: {first}, seconds of a step", turns.seconds[first], turns.again)
        rates = {
            name: Sample.of([tokens / s for s in seconds])
            for name, seconds in turns.seconds.items()
        }
        print(f"\n{row}: tokens per second, median (range)")
        for name, rate in rates.items():
            print(f"  {name:16} {rate.spelt(',.0f')}")
        sys.stdout.flush()
        self.results[row] = {"tokens_per_s": rates}
        return turns


def large_programs(size):
    """The four programs that train xLSTM Large."""
    return {
        TORCH: Program(OURS, "train_large", {"size": size, "backend": "torch:cpu"}),
        MLX: Program(OURS, "train_large", {"size": size, "backend": "mlx:cpu"}, ("mlx.core",)),
        PACKAGE: Program(PEERS, "train_xlstm_large", {"size": size}, LIBRARIES),
        TRANSFORMERS: Program(PEERS, "train_transformers", {"size": size}, LIBRARIES),
    }


def training(report, thread_counts):
    """Training steps of xLSTM Large at three sizes."""
    sizes = (SMALL, 1.4), (WIDE, 1.05), (LARGE_VOCABULARY, 1.5)
    for size, limit in smallest(sizes[:2], sizes):
        for threads in thread_counts:
            row = f"{size.name}, {threads} thread{'s' * (threads > 1)}"
            programs = large_programs(size) | (product_programs(size) if size is WIDE else {})
            turns = report.measure(row, programs, size.tokens, threads)
            for peer in (PACKAGE, TRANSFORMERS):
                report.at_least(f"{row}: {TORCH} / {peer}", turns.ratio(peer, TORCH), limit)
            report.at_least(f"{row}: {MLX} / {TORCH}", turns.ratio(TORCH, MLX), 0.5)
            if size is WIDE:
                arithmetic(report, row, size, turns)


def product_programs(size):
    """The matrix products of one block, by torch's library and by our own."""
    options = {"rows": size.tokens, "shapes": product_shapes(size)}
    return {
        TORCH_SGEMM: Program(OURS, "products", {**options, "library": "torch"}),
        OWN_SGEMM: Program(OURS, "products", {**options, "library": "mlxhog"}),
    }


def product_shapes(size):
    """(in, out) of a block's maps: q and k together, v, o, out; gate, up; down."""
    d, U = size.d, large(size).ffn_dim
    return [(d, d)] * 4 + [(d, U)] * 2 + [(U, d)]


def arithmetic(report, row, size, turns):
    """Useful work of a training step beside the rates of plain matrix products.

    A step costs 6 operations for each parameter and token: 2 forward, 4 backward. The claim is on
    the sgemm that everybody has, torch's; the share of our own, faster product is shown beside it.
    """
    products = sum(2 * size.tokens * m * n for m, n in product_shapes(size))
    work = 6 * families.param_count(large(size)) * size.tokens
    steps = turns.seconds[TORCH]
    gflops = {"step": Sample.of([work / s / 1e9 for s in steps])}
    for name in product_programs(size):
        gflops[name] = Sample.of([products / s / 1e9 for s in turns.seconds[name]])
        share = Ratio.of(
            [work / step for step in steps], [products / s for s in turns.seconds[name]]
        )
        report.results[row] |= {f"share of {name}": share}
        if name == TORCH_SGEMM:
            claim = f"{row}: {TORCH}, 6 x parameters x tokens_per_s / sgemm"
            report.at_least(claim, share, 0.85)
    print("  " + ", ".join(f"{name} {rate.median:.0f} GFLOP/s" for name, rate in gflops.items()))
    report.results[row] |= {"gflops": gflops}


def v1(report, thread_counts):
    """Training steps of seven mLSTM blocks and one sLSTM block."""
    size = SEVEN_TO_ONE
    programs = {
        TORCH: Program(OURS, "train_v1", {"size": size, "backend": "torch:cpu"}),
        MLX: Program(OURS, "train_v1", {"size": size, "backend": "mlx:cpu"}, ("mlx.core",)),
        PACKAGE: Program(PEERS, "train_xlstm_v1", {"size": size}),
    }
    for threads in thread_counts:
        row = f"{size.name}, threads {threads}"
        turns = report.measure(row, programs, size.tokens, threads)
        report.at_least(f"{row}: {TORCH} / {PACKAGE}", turns.ratio(PACKAGE, TORCH), 3.0)
        report.at_least(f"{row}: {MLX} / {TORCH}", turns.ratio(TORCH, MLX), 0.5)


def memory(report, thread_counts):
    """Peak memory of a training step of long sequences."""
    row = f"memory of a training step, {LONG.name}"
    peaks = {}
    programs = large_programs(LONG)
    for name in smallest((TORCH, PACKAGE), programs):
        arm = Arm(programs[name], threads=thread_counts[-1])
        arm.ready()
        arm.run(0.0)
        peaks[name] = arm.close()
    print(f"\n{row}: peak beyond the libraries, and with them, MB")
    for name, peak in peaks.items():
        print(f"  {name:16} {peak.added / 1e6:8.0f} {peak.most / 1e6:8.0f}")
    report.results[row] = {name: asdict(peak) for name, peak in peaks.items()}
    share = peaks[TORCH].added / peaks[PACKAGE].added
    report.at_most(f"{row}: {TORCH} / {PACKAGE}", share, 0.7, timing=False)


def cells(report, thread_counts):
    """One cell of each kind beside the peer's."""
    mlstm, slstm = MLSTMSize(), SLSTMSize()
    for threads in thread_counts:
        row = f"mLSTM cell, {mlstm.name}, threads {threads}"
        programs = {
            TORCH: Program(OURS, "mlstm_cell", {"size": mlstm}),
            KERNELS: Program(PEERS, "mlstm_cell", {"size": mlstm}),
        }
        turns = report.measure(row, programs, mlstm.tokens, threads)
        report.at_least(f"{row}: {TORCH} / {KERNELS}", turns.ratio(KERNELS, TORCH), 1.5)
        row = f"sLSTM cell, {slstm.name}, threads {threads}"
        programs = {
            TORCH: Program(OURS, "slstm_cell", {"size": slstm}),
            VANILLA: Program(PEERS, "slstm_cell", {"size": slstm}),
        }
        turns = report.measure(row, programs, slstm.tokens, threads)
        report.at_least(f"{row}: {TORCH} / {VANILLA}", turns.ratio(VANILLA, TORCH), 10.0)


def growth(report, thread_counts):
    """Time and peak memory of the mLSTM cell over S, as trained and in its parallel form."""
    size = MLSTMSize(batch=1)
    forms = {"chunkwise": LENGTHS, "parallel": PARALLEL_LENGTHS}
    programs = {
        f"{form} {S}": Program(OURS, "mlstm_cell", {"size": replace(size, seq=S), "form": form})
        for form, lengths in forms.items()
        for S in lengths
    }
    turns = in_turns(
        programs, threads=thread_counts[0], turns=report.turns, seconds=report.seconds / 2
    )
    row = f"mLSTM cell over S, B {size.batch}, NH {size.heads}, DK {size.key}, DV {size.value}"
    print(f"\n{row}: forward and backward, ms; peak beyond the libraries, MB")
    table = {}
    for name in programs:
        ms, mb = 1e3 * turns.median(name), turns.peaks[name].added / 1e6
        print(f"  {name:16} {ms:9.1f} ms {mb:9.1f} MB")
        table[name] = {"ms": ms, "mb": mb}
    report.results[row] = table

    def exponent(what, form, lengths):
        """Power of S with which a quantity grows from the first length to the last."""
        first, last = lengths[0], lengths[-1]
        ratio = table[f"{form} {last}"][what] / table[f"{form} {first}"][what]
        return math.log(ratio) / math.log(last / first)

    # Time is a little more than linear: at S 512 everything lies in the cache.
    name = f"mLSTM cell from S {LENGTHS[0]} to {LENGTHS[-1]:,}, growth as a power of S"
    report.at_most(f"{name}: time", exponent("ms", "chunkwise", LENGTHS), 1.15)
    report.at_most(f"{name}: memory", exponent("mb", "chunkwise", LENGTHS), 1.15, timing=False)
    name = f"parallel form from S {PARALLEL_LENGTHS[0]} to {PARALLEL_LENGTHS[-1]:,}"
    powers = {what: exponent(what, "parallel", PARALLEL_LENGTHS) for what in ("ms", "mb")}
    report.results[row]["parallel form, power of S"] = powers
    for what, power in powers.items():
        print(f"  {name}: {what} as S^{power:.2f}")
