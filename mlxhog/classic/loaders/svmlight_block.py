"""A block of svmlight lines, parsed by NumPy at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlxhog.classic.loaders.lines import parse_numbers

_SPACE = 32  # this byte and all below it separate words


@dataclass(frozen=True)
class ParsedRows:
    """Rows of a block, features as the file counts them."""

    labels: NDArray[np.float64]
    lengths: NDArray[np.int64]
    features: NDArray[np.int32]
    values: NDArray[np.float32]


def parse_block(text: bytes) -> ParsedRows | None:
    """Rows of whole lines without comments, or None where any line is not as it should be."""
    symbols = np.frombuffer(text, dtype=np.uint8)
    in_word = symbols > _SPACE
    begins = np.flatnonzero(in_word & ~np.concatenate([[False], in_word[:-1]]))
    colons = np.flatnonzero(symbols == ord(":"))
    line = np.cumsum(symbols == ord("\n"), dtype=np.int32)[begins]
    opens_line = np.concatenate([[True], line[1:] != line[:-1]])[: len(begins)]
    # Labels have no colon; every other word has one, which is neither its first symbol nor its
    # last. (No colon can be the text's last symbol: that is a line end.)
    word_of_colon = np.searchsorted(begins, colons, side="right") - 1
    if not np.array_equal(word_of_colon, np.flatnonzero(~opens_line)):
        return None
    if not (in_word[colons - 1].all() and in_word[colons + 1].all()):
        return None
    numbers = parse_numbers(text.replace(b":", b" "))
    if numbers is None or len(numbers) != len(begins) + len(colons):
        return None
    first_words = np.flatnonzero(opens_line)
    lengths = np.diff(np.append(first_words, len(begins))) - 1
    # Each label stands after one number per earlier label and two per earlier pair.
    at_label = np.arange(len(lengths)) + 2 * (np.cumsum(lengths) - lengths)
    pairs = np.delete(numbers, at_label)
    parsed = ParsedRows(numbers[at_label], lengths, *_columns(pairs))
    return parsed if _is_sound(parsed, pairs[0::2]) else None


def _columns(pairs: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    with np.errstate(invalid="ignore", over="ignore"):
        return pairs[0::2].astype(np.int32), pairs[1::2].astype(np.float32)


def _is_sound(parsed: ParsedRows, features: NDArray[np.float64]) -> bool:
    """Whether rows are not empty, numbers finite, and `features` whole, legal and rising."""
    if not (parsed.lengths > 0).all():
        return False
    steps = np.diff(parsed.features)
    steps[np.cumsum(parsed.lengths)[:-1] - 1] = 1
    return bool(
        np.isfinite(parsed.labels).all()
        and np.isfinite(parsed.values).all()
        and np.array_equal(parsed.features, features)
        and (features >= 0).all()
        and (steps > 0).all()
    )
