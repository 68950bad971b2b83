"""A line that says what a number of bits per byte is worth, beside models everybody knows."""

import math
from collections.abc import Mapping

from mlxhog.report.metrics import REFERENCE_BITS_PER_BYTE

BEST = 1.5  # right end of the scale; a better model sits at the end


def scale(
    value: float | None,
    *,
    width: int = 64,
    references: Mapping[str, float] = REFERENCE_BITS_PER_BYTE,
) -> tuple[str, str, str]:
    """Draw a logarithmic scale from the worst reference on the left to `BEST` on the right.

    Args:
        value: bits per byte to mark, or None for the bare scale.
        width: columns.
        references: marks with their names.

    Returns:
        Three lines of at most `width` columns: names, axis with `o` at the value, numbers.
    """
    worst = max(references.values())

    def column(bits: float) -> int:
        share = math.log(worst / max(bits, BEST)) / math.log(worst / BEST)
        return round(max(0.0, share) * (width - 1))

    axis = ["-"] * width
    for bits in references.values():
        axis[column(bits)] = "|"
    if value is not None and math.isfinite(value):
        axis[column(value)] = "o"
    names = {column(bits): name for name, bits in references.items()}
    numbers = {column(bits): f"{bits:.2f}" for bits in references.values()}
    return _place(names, width), "".join(axis), _place(numbers, width)


def _place(words: Mapping[int, str], width: int) -> str:
    """Put words at their columns, leaving out what would run into the word before it."""
    line = ""
    for column, word in sorted(words.items()):
        start = min(column, width - len(word))
        if start >= len(line) + bool(line):
            line = line.ljust(start) + word
    return line
