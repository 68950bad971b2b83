"""The most that memory lets the update kernels do: predicted from their source, not measured.

    python -m tools.roofline

An update of one element moves `Kernel.bytes_per_element` bytes of device memory (counted from the
source by a test), and no kernel here computes enough to be limited by anything else. So a chip's
memory bandwidth divided by those bytes bounds its elements per second. Launches, contended atomics
and whatever else uses the memory come on top; parameters that fit the chip's cache may beat it.

Bandwidths are Apple's: newsroom announcements of each chip, and the technical specifications of
Mac mini, MacBook Pro and Mac Studio. Of the M1 Apple says only that the M2's 100 GB/s are half as
much again: 128 bits of LPDDR4X-4266 are 68.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from mlxhog.metal.registry import KERNELS

BANDWIDTH_GB_S: Mapping[str, float] = {
    "M1": 68,
    "M1 Pro": 200,
    "M1 Max": 400,
    "M1 Ultra": 800,
    "M2": 100,
    "M2 Pro": 200,
    "M2 Max": 400,
    "M2 Ultra": 800,
    "M3": 100,
    "M3 Pro": 150,
    "M3 Max": 400,
    "M3 Ultra": 819,
    "M4": 120,
    "M4 Pro": 273,
    "M4 Max": 546,
}
"""Gigabytes (10^9) per second; of a chip sold in two bandwidths the larger: M3 Max also 300, M4 Max
also 410. There is no M4 Ultra."""

PARAMETERS: Mapping[str, int] = {"tiny": 939_680, "160m": 162_303_840, "1.3b": 1_420_839_104}
"""Of `tiny`, and of xLSTM Large in the two published sizes (768 x 12 and 2048 x 24, 50,304 ids)."""

UPDATES = ("dense_axpy", "sgd_apply", "momentum_apply", "adam_apply")
"""Kernels that update dense parameters, as the table shows them."""


def elements_per_s(kernel: str, chip: str) -> float:
    """Return the most elements per second that a chip's memory lets a kernel update."""
    return BANDWIDTH_GB_S[chip] * 1e9 / KERNELS[kernel].bytes_per_element


def update_ms(kernel: str, chip: str, parameters: int) -> float:
    """Return the least time in milliseconds of one dense update of so many parameters."""
    return 1e3 * parameters / elements_per_s(kernel, chip)


def speeds() -> str:
    """Return the prediction as a Markdown table, a row per chip."""
    head = ["chip", "GB/s", *(f"`{name}`" for name in UPDATES)]
    head += [f"AdamW, {size}" for size in PARAMETERS]
    rows = []
    for chip, bandwidth in BANDWIDTH_GB_S.items():
        rates = [f"{elements_per_s(name, chip) / 1e6:,.0f}" for name in UPDATES]
        times = [update_ms("adam_apply", chip, n) for n in PARAMETERS.values()]
        rows.append([chip, f"{bandwidth:g}", *rates, *(f"{ms:.3g} ms" for ms in times)])
    return _table(head, rows)


def bytes_moved() -> str:
    """Return the bytes that each memory-bound kernel moves per element as a Markdown table."""
    rows = [
        [f"`{kernel.name}`", f"{kernel.bytes_per_element:.4g}"]
        for kernel in KERNELS.values()
        if kernel.bytes_per_element
    ]
    return _table(["kernel", "bytes per element"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print both tables."""
    print("Prediction, not measured: the most that memory bandwidth allows.\n")
    print("Million elements per second, and the least time of one dense AdamW update:\n")
    print(speeds())
    print("\nDevice memory read and written per element, from the kernels' source:\n")
    print(bytes_moved())


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tools.roofline",
        description="Print how fast memory bandwidth lets the update kernels be: a prediction.",
    ).parse_args()
    main()
