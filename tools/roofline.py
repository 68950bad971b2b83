"""The most that memory lets the kernels do: predicted from their source, not measured.

    python -m tools.roofline

An update of one element moves `Kernel.bytes_per_element` bytes of device memory (counted from the
source by a test), and no kernel here computes enough to be limited by anything else. So a chip's
memory bandwidth divided by those bytes bounds its elements per second. Launches, contended atomics
and whatever else uses the memory come on top; parameters that fit the chip's cache may beat it.

The kernels of the cells load most bytes more than once: `tests/metal/kernels/traffic.json` has what
they touch, counted as they run in the shim. If caches serve every load but the first, memory bounds
their time by `memory`; if they serve none, by `line_bytes`, 128 for every cache line that an access
of a simdgroup touches. Where between the two a GPU is, only a Mac can show. The sLSTM's recurrent
matrix counts once for 32 positions.

Bandwidths are Apple's: newsroom announcements of each chip, and the technical specifications of
Mac mini, MacBook Pro and Mac Studio. Of the M1 Apple says only that the M2's 100 GB/s are half as
much again: 128 bits of LPDDR4X-4266 are 68.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    "M5": 153,
    "M5 Pro": 307,
    "M5 Max": 614,
}
"""Gigabytes (10^9) per second; of a chip sold in two bandwidths the larger: M3 Max also 300, M4 Max
also 410, M5 Max also 460. There is no M4 Ultra."""

TRAFFIC = Path(__file__).parents[1] / "tests" / "metal" / "kernels" / "traffic.json"

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


def cells() -> str:
    """Return what each kernel of a cell touches per position and head, and its bounds on time."""
    counts: Mapping[str, Mapping[str, Any]] = json.loads(TRAFFIC.read_text())
    chips = ("M1", "M2", "M3", "M4", "M5")
    sums = ("memory", "loaded", "stored", "line_bytes", "group_loaded", "group_stored")
    head = [*(name.replace("_", " ") for name in sums), "bytes of a group", "lines / access"]
    rows = []
    for name, n in counts.items():
        kernel = KERNELS.get(name)
        if kernel is None or kernel.bytes_per_element:
            continue
        worst = max(n["lines"], key=n["lines"].get)
        bounds = [
            f"{n['memory'] / speed:,.4g} - {n['line_bytes'] / speed:,.4g} ns"
            for speed in (BANDWIDTH_GB_S[chip] for chip in chips)
        ]
        touched = [f"{n[name]:,.0f}" for name in (*sums, "group_bytes")]
        rows.append([f"`{name}`", *touched, f"{n['lines'][worst]:.1f} ({worst})", *bounds])
    return _table(["kernel", *head, *chips], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the tables."""
    print("Prediction, not measured: the most that memory bandwidth allows.\n")
    print("Million elements per second, and the least time of one dense AdamW update:\n")
    print(speeds())
    print("\nDevice memory read and written per element, from the kernels' source:\n")
    print(bytes_moved())
    print("\nBytes per position of one head, and the time that memory bounds them by, with caches")
    print("that keep everything and with none; an mLSTM head of 128 x 256, an sLSTM head of 192:\n")
    print(cells())


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tools.roofline",
        description="Print how fast memory bandwidth lets the kernels be: a prediction.",
    ).parse_args()
    main()
