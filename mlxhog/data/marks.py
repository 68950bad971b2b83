"""What bits per byte are worth on a text: those of simple models, of its held-out part.

    uniform     8, of any text
    unigram     the entropy of its bytes, each by itself
    gzip        `gzip -9`
    xz          `xz -9e`

Each sees the first MiB of held-out text and nothing else. The numbers are remembered in
`marks.json` beside the token file, with its digest.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
from pathlib import Path

import numpy as np

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import EnvironmentLacks
from mlxhog.files import plain_json
from mlxhog.files.durable import replace_file

FILE = "marks.json"
MOST_BYTES = 1 << 20
UNIFORM = {"uniform": 8.0}
LEAST = 0.01  # bits per byte, of text that repeats itself
NAMES = ("unigram", "gzip", "xz")


def of_text(text: bytes) -> dict[str, float]:
    """Return the bits per byte of every simple model on a text.

    >>> of_text(b"never wait, add without a lock. " * 100)
    {'uniform': 8.0, 'unigram': 3.906, 'gzip': 0.19, 'xz': 0.3}
    """
    n_bytes = max(len(text), 1)
    shares = np.bincount(np.frombuffer(text, np.uint8)) / n_bytes
    shares = shares[shares > 0]
    bits = {
        "unigram": float(-(shares * np.log2(shares)).sum()),
        "gzip": 8 * len(gzip.compress(text, 9)) / n_bytes,
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / n_bytes,
    }
    return UNIFORM | {name: max(LEAST, round(value, 3)) for name, value in bits.items()}


def of_file(val: Path, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the marks of a held-out token file, computed the first time.

    Args:
        val: its `.bin`.
        tokenizer: what made it.

    Raises:
        DataError: the token file is damaged.
    """
    file, memory = TokenFile.open(val), val.with_name(FILE)
    remembered = _remembered(memory, file.digest)
    if remembered is not None:
        return remembered
    tokens = np.asarray(file.tokens[: 2 * MOST_BYTES], np.int32)  # some stand for no byte
    n_bytes = np.cumsum(file.byte_lengths[tokens])
    end = int(np.searchsorted(n_bytes, MOST_BYTES)) + 1
    marks = of_text(tokenizer.decode(tokens[:end])[:MOST_BYTES])
    content = json.dumps({"sha256": file.digest, "bits_per_byte": marks}, indent=1)
    try:
        replace_file(memory, content.encode())
    except (OSError, EnvironmentLacks):
        pass  # a directory that others own, or a full disk: they are computed again
    return marks


def _remembered(memory: Path, digest: str) -> dict[str, float] | None:
    """Return what `marks.json` holds of this text; None where it holds nothing that counts."""
    try:
        record = plain_json.read(memory)
        if record["sha256"] != digest:
            return None
        marks = {name: float(record["bits_per_byte"][name]) for name in record["bits_per_byte"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(math.isfinite(bits) and bits > 0 for bits in marks.values())
    return marks if sound and marks.keys() == {*UNIFORM, *NAMES} else None
