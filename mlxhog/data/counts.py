"""Counted n-grams of a training text: a model without a network, the mark of a run.

The counts of an id after each context of up to K ids are mixed, from the shortest context to the
longest one that occurs (interpolated Kneser-Ney: Kneser and Ney 1995, Improved Backing-Off for
m-Gram Language Modeling; Chen and Goodman 1999):

    p_k = (max(count - d, 0) + d distinct p_(k-1)) / total        p_(-1) = 1 / vocabulary

with d = 0.75. For the longest context count is the number of occurrences of the id after it, for a
shorter one the number of distinct ids before both; total is the sum of the counts after the
context, and distinct the number of ids there. K is the number of ids that span 7 bytes on average:
7 bytes, or 2 to 3 ids of a BPE.

An occurrence is one key of 64 bits, exact and not hashed: K + 1 symbols, the newest of the context
highest, the next id lowest. A symbol is the rank of an id among those that occur. A key with room
for fewer symbols shortens the context: 3 ids up to a vocabulary of 65,536. Of a text with more than
`SAMPLE` tokens, evenly spaced runs are counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.data import heldout
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError, EnvironmentLacks

CONTEXT = 7  # bytes of context of the mark
DISCOUNT = 0.75
SAMPLE, _RUN = 1 << 24, 1 << 16  # most tokens that are counted, and tokens in a run of a sample
_MOST_ORDERS = 63  # a key of 64 bits has room for no more
_SCORE_FILE = "counts.json"
_FORMAT = "Kneser-Ney"

Keys = NDArray[np.uint64]


def probabilities(file: TokenFile, ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the probability of each id of a text after the ids before it, (n,).

    Raises:
        DataError: the counted text is shorter than a context, or the file is damaged.
    """
    spanning = math.ceil(
        CONTEXT * (file.n_tokens - file.header["documents"]) / max(1, file.header["bytes"])
    )
    orders = min(max(spanning, 1), _MOST_ORDERS)
    if file.n_tokens <= orders:
        raise DataError(
            f"{file.path} has {file.n_tokens} tokens, too few to count what follows {orders}"
        )
    counted = file.sampled(SAMPLE, _RUN)
    run = _RUN if file.n_tokens > SAMPLE else file.n_tokens
    file.check_known(counted)
    present, symbols = np.unique(counted, return_inverse=True)
    bits = max(1, (len(present) - 1).bit_length())
    orders = min(orders, 64 // bits - 1)
    ranks = np.full(file.header["vocab"], -1)
    ranks[present] = np.arange(len(present))
    known, asked = ranks[ids] >= 0, ranks[ids].clip(0).astype(np.uint64)
    p = np.full(len(ids), 1 / len(ranks))
    has_context = np.ones(len(ids), bool)
    levels = reversed([*_levels(symbols.astype(np.uint64), run, bits, orders)])
    for k, (keys, times) in enumerate(levels):
        if k:
            has_context[k:] &= known[:-k]
            has_context[:k] = False
        key = _keys(asked, k, bits)
        contexts, starts = np.unique(keys >> np.uint64(bits), return_index=True)
        at, own = _places(contexts, key >> np.uint64(bits)), _places(keys, key)
        total = np.add.reduceat(times, starts)[at]
        distinct = np.diff(np.append(starts, len(keys)))[at]
        count = np.where(known & (own >= 0), times[own], 0)
        has_context &= at >= 0
        rest = DISCOUNT * distinct * p
        p = np.where(has_context, (np.maximum(count - DISCOUNT, 0.0) + rest) / total, p)
    return p


def score(train: Path, val: Path, asked_bytes: int) -> float | None:
    """Return the bits per byte of a training text's counts on a part of its held-out text.

    The score is computed at the first call, and stored beside the held-out text. Prompts and
    completions, which are not plain text, have none.

    Raises:
        DataError: a token file is damaged, or the training text is shorter than a context.
    """
    text, part = TokenFile.open(train), heldout.part(TokenFile.open(val), asked_bytes)
    if text.prompts is not None or part.prompts is not None or not part.header["bytes"]:
        return None
    of = {"train": text.digest, "held_out": part.digest, "format": _FORMAT}
    path = val.with_name(_SCORE_FILE)
    with suppress(OSError, ValueError, KeyError, TypeError):  # not computed yet, or damaged
        record = plain_json.read(path)
        if record["of"] == of:
            return float(record["bits"])
    ids = np.asarray(part.tokens, np.int32)
    places = 1 + np.flatnonzero(ids[1:] != part.bos)
    nats = -np.log(probabilities(text, ids)[places]).sum()
    bits = float(nats / (math.log(2) * part.text_bytes(ids[places])))
    with suppress(OSError, EnvironmentLacks):  # another user's directory, or a full disk
        replace_file(path, json.dumps({"of": of, "bits": bits}).encode())
    return bits


def _keys(symbols: Keys, k: int, bits: int) -> Keys:
    """The key of every position: the k symbols before it, the newest highest, then its own."""
    keys = symbols.copy()
    for j in range(1, min(k + 1, len(symbols))):
        keys[j:] |= symbols[:-j] << np.uint64(bits * (k - j + 1))
    return keys


def _levels(
    symbols: Keys, run: int, bits: int, orders: int
) -> Iterator[tuple[Keys, NDArray[np.int64]]]:
    """Yield keys and their counts of each order, from the longest contexts on."""
    whole = np.arange(len(symbols)) % run >= orders  # no context spans two runs
    keys, width = _keys(symbols, orders, bits)[whole], np.uint64(bits)
    for _ in range(orders + 1):
        keys, times = np.unique(keys, return_counts=True)
        yield keys, times
        # Without the oldest symbol, which lies above the next id.
        keys = (keys >> width >> width << width) | (keys & np.uint64((1 << bits) - 1))


def _places(ascending: Keys, wanted: Keys) -> NDArray[np.intp]:
    """The place of each number, or -1."""
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return np.where(ascending[at] == wanted, at, -1)
