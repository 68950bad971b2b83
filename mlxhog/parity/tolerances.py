"""How far two sides may differ, and why: the one table.

What is allowed between two tensors of a kind is `atol`, plus `of_largest` times the largest entry
of the wanted tensor, plus `of_all` times the largest entry of all wanted tensors of that kind: that
keeps a tensor which ought to vanish (gradients behind a closed gate) from being measured against
its own rounding noise. Where that is more, it is `SWAYS` times how far the result moves when its
inputs are rounded once more (`sway.py`), so that what is badly conditioned is not called wrong.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference, see above."""

    reason: str
    atol: float = 0.0
    of_largest: float = 0.0
    of_all: float = 0.0

    def allowed(self, largest: float, largest_of_all: float) -> float:
        """Return the largest difference that is no disagreement."""
        return self.atol + self.of_largest * largest + self.of_all * largest_of_all


SWAYS = 64.0
"""Roundings of every input that a computation may amount to. Seen: 18, in xLSTMLarge run step by
step, by itself over the whole sequence (architecture tiny with seed 2, logits off by 2.9e-4)."""

EXACT = Tolerance("a choice, not a number")

FLOAT32 = {
    "hidden": Tolerance("float32 rounding of sums over the width", atol=1e-5, of_largest=2e-5),
    "logits": Tolerance(
        "transformers and xlstm differ from their own float64 by up to 2.3e-5 on logits of order 4",
        atol=1e-4,
    ),
    "loss": Tolerance("float32 rounding of a mean of order 4", atol=1e-5),
    "state": Tolerance(
        "C and n carry the scale exp(-m), so only their size relative to the largest means a thing",
        atol=1e-5,
        of_largest=1e-4,
    ),
    "states": Tolerance("as state, after every position", atol=1e-5, of_largest=1e-4),
    "grad": Tolerance(
        "reordering chunks alone moves xlstm's float32 gradients by 1.4e-4 of a tensor's largest "
        "entry, and a stabiliser held constant by 1e-5; tensors behind a closed gate are noise of "
        "the others",
        of_largest=2e-3,
        of_all=1e-7,
    ),
    "after": Tolerance(
        "relative to the way moved, gradients within their own tolerance; AdamW divides by them, "
        "softened by its eps; and float32 rounding of the parameter itself",
        atol=2e-6,
        of_largest=1e-2,
    ),
    "init": Tolerance("float32 rounding of values up to 12", atol=2e-6),
    "h": Tolerance("float32 rounding of a cell alone", atol=1e-6, of_largest=2e-5),
    "y": Tolerance("float32 rounding of one operator", atol=1e-6, of_largest=3e-6),
    "greedy_ids": EXACT,
}

FLOAT64 = {
    kind: Tolerance("two float64 programs", atol=1e-9, of_largest=1e-9)
    for kind in FLOAT32
    if kind != "greedy_ids"
} | {
    "greedy_ids": EXACT,
    "grad": Tolerance("two float64 programs", atol=1e-11, of_largest=1e-8),
}


FORMS = FLOAT64 | {
    kind: Tolerance(
        "two float64 programs, one with the parallel form of the cell, where eps enters at another "
        "scale: up to 5e-7 of an output, before later layers",
        atol=1e-6,
        of_largest=2e-6,
    )
    for kind in ("hidden", "logits", "loss", "grad")
}

TABLES = {"float32": FLOAT32, "float64": FLOAT64, "forms": FORMS}
"""By what two sides are: one in float32 at least, both in float64, or that with different forms."""


def of(kind: str, precision: str) -> Tolerance:
    """Return the tolerance of a kind of tensor between two sides; a key of `TABLES`."""
    return TABLES[precision][kind]
