"""The cells alone, forward and backward: beside the peers', and over the length of a sequence."""

from __future__ import annotations

import math
from dataclasses import replace

from _arms import Program, in_turns
from _report import OURS, PEERS, TORCH, Report
from _sizes import MLSTMSize, SLSTMSize

KERNELS, VANILLA = "mlstm_kernels", "xlstm, vanilla"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
PARALLEL_LENGTHS = (512, 1024, 2048)


def cells(report: Report, thread_counts: list[int]) -> None:
    """One cell of each kind beside the peer's."""
    mlstm, slstm = MLSTMSize(), SLSTMSize()
    for threads in thread_counts:
        row = f"mLSTM cell, {mlstm.name}, threads {threads}"
        programs = {
            TORCH: Program(OURS, "mlstm_cell", {"size": mlstm}),
            KERNELS: Program(PEERS, "mlstm_cell", {"size": mlstm}),
        }
        found = report.measure(row, programs, mlstm.tokens, threads)
        report.at_least(f"{row}: {TORCH} / {KERNELS}", found.ratio(KERNELS, TORCH), 1.5)
        row = f"sLSTM cell, {slstm.name}, threads {threads}"
        programs = {
            TORCH: Program(OURS, "slstm_cell", {"size": slstm}),
            VANILLA: Program(PEERS, "slstm_cell", {"size": slstm}),
        }
        found = report.measure(row, programs, slstm.tokens, threads)
        report.at_least(f"{row}: {TORCH} / {VANILLA}", found.ratio(VANILLA, TORCH), 10.0)


def growth(report: Report, thread_counts: list[int]) -> None:
    """Time and peak memory of the mLSTM cell over S, as trained and in its parallel form."""
    size = MLSTMSize(batch=1)
    forms = {"chunkwise": LENGTHS, "parallel": PARALLEL_LENGTHS}
    programs = {
        f"{form} {S}": Program(OURS, "mlstm_cell", {"size": replace(size, seq=S), "form": form})
        for form, lengths in forms.items()
        for S in lengths
    }
    found = in_turns(
        programs, threads=thread_counts[0], turns=report.turns, seconds=report.seconds / 2
    )
    row = f"mLSTM cell over S, B {size.batch}, NH {size.heads}, DK {size.key}, DV {size.value}"
    print(f"\n{row}: forward and backward, ms; peak beyond the libraries, MB")
    table = {}
    for name in programs:
        ms, mb = 1e3 * found.median(name), found.peaks[name].added / 1e6
        print(f"  {name:16} {ms:9.1f} ms {mb:9.1f} MB")
        table[name] = {"ms": ms, "mb": mb}
    report.results[row] = table

    def exponent(what: str, form: str, lengths: tuple[int, ...]) -> float:
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
