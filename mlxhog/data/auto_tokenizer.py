"""`--tokenizer auto`: the tokenizer that fits a text and a model, and that of the text here.

    tokenizer  chosen for
    sotu       the text in the package, from whose training documents it was learnt
    bytes      less than `LEAST` KiB of training text, a narrow model, or a machine without the
               package tokenizers
    bpe:N      any other text

N is a power of two. The text limits it, since a row of the embedding learns from the gradients of
its own id only: with an id for each KiB of text, of about four bytes a token, the mean id comes 250
times, and the rarest, by Zipf's law, about 30 times. The model limits it, since embedding and head
have 2 N d numbers: `IDS_PER_WIDTH` is the ratio that was best in a minute of the width 128
(`python benchmarks/defaults.py --only minute`).
"""

from __future__ import annotations

import importlib.util
from typing import Final

from mlxhog.base.quantities import format_bytes
from mlxhog.data.sotu import SOTU_SHA256
from mlxhog.data.tokenizers import SHIPPED

AUTO: Final = "auto"
BYTES_PER_ID: Final = 1024
IDS_PER_WIDTH: Final = 32
LEAST: Final = 1024
MOST: Final = 32_768


def choose(*, n_bytes: int, width: int, sha256: str, rule: str) -> tuple[str, str | None]:
    """Return the tokenizer for a text and a model, and a line for the user that says why.

    Args:
        n_bytes: of training text.
        width: of the model.
        sha256: digest of the text.
        rule: of its held-out part.
    """
    if importlib.util.find_spec("tokenizers") is None:
        return "bytes", (
            "tokenizer bytes: the package tokenizers, which learns pieces of words, is missing: "
            "python -m pip install tokenizers"
        )
    if (sha256, rule) == (SOTU_SHA256, "every-12th"):
        return SHIPPED, None
    of_text, of_model = _power_of_two(n_bytes // BYTES_PER_ID), _power_of_two(IDS_PER_WIDTH * width)
    ids = min(of_text, of_model, MOST)
    if ids >= LEAST:
        return f"bpe:{ids}", (
            f"tokenizer bpe:{ids}, learnt from {format_bytes(n_bytes)} of training text for width "
            f"{width}; --tokenizer bytes learns none"
        )
    if of_text < LEAST:
        why = f"{format_bytes(n_bytes)} of training text are few for pieces of words"
    else:
        why = f"a model of width {width} is narrow for pieces of words"
    return "bytes", f"tokenizer bytes: {why} (--tokenizer bpe:N learns them nevertheless)"


def _power_of_two(number: int) -> int:
    """The largest power of two up to a number; 0 below 1."""
    return 1 << (number.bit_length() - 1) if number > 0 else 0
