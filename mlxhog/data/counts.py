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

Contexts with different newest ids have nothing in common, so about `BLOCK` occurrences are counted
at a time, in all orders, and only what the asked text needs is kept: `SAMPLE` tokens take 200 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.data import validation_set
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError, EnvironmentLacks

CONTEXT = 7  # bytes of context of the mark
DISCOUNT = 0.75
SAMPLE, _RUN = 1 << 24, 1 << 16  # most tokens that are counted, and tokens in a run of a sample
BLOCK = 1 << 20  # occurrences that are counted at a time
_BYTES, _TOKEN_BYTES, _TOKEN_S = 32 << 20, 12, 2.5e-7  # about, of one core
_MAX_ORDERS = 63  # a key of 64 bits has room for no more
_SCORE_FILE = "counts.json"
_FORMAT = "Kneser-Ney"

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]


def probabilities(
    file: TokenFile, ids: NDArray[np.int32], check: Callable[[], None] = lambda: None
) -> NDArray[np.float64]:
    """Return the probability of each id of a text after the ids before it, (n,).

    `check` is called before each block, and may raise to end the count.

    Raises:
        DataError: the counted text is shorter than a context, or the file is damaged.
    """
    spanning = math.ceil(
        CONTEXT * (file.n_tokens - file.header["documents"]) / max(1, file.header["bytes"])
    )
    orders = min(max(spanning, 1), _MAX_ORDERS)
    if file.n_tokens <= orders:
        raise DataError(
            f"{file.path} has {file.n_tokens} tokens, too few to count what follows {orders}"
        )
    counted = file.sampled(SAMPLE, _RUN)
    run = _RUN if file.n_tokens > SAMPLE else file.n_tokens
    file.check_known(counted)
    occurs = _bincount(counted, file.header["vocab"]) > 0
    n_symbols = int(occurs.sum())
    bits = max(1, (n_symbols - 1).bit_length())
    orders = min(orders, 64 // bits - 1)
    ranks = np.where(occurs, np.cumsum(occurs) - 1, -1)
    known, asked = ranks[ids] >= 0, ranks[ids].clip(0)
    small = ranks.astype(np.min_scalar_type(n_symbols))
    symbols = np.concatenate([small[part] for part in _pieces(counted)])
    # Of each order and asked id: occurrences after its context, of this id and of all, and ids.
    tallies = np.zeros((orders + 1, 3, len(ids)), np.int32)
    after_any = np.zeros(n_symbols, np.int64)  # ids before an id, each once
    for of_block, levels in _blocks(symbols, n_symbols, run, bits, orders):
        check()
        at = 1 + np.flatnonzero(of_block[asked[:-1]])  # asked ids whose newest context is in it
        for k, (keys, times) in zip(range(orders, 0, -1), levels, strict=True):
            places = at[at >= k]
            tallies[k][:, places] = _look_up(keys, times, _keys(asked, places, k, bits), bits)
        after_any += _bincount(keys & np.uint64((1 << bits) - 1), n_symbols)
    tallies[0].T[:] = (0, after_any.sum(), np.count_nonzero(after_any))
    tallies[0, 0] = after_any[asked]
    p = np.full(len(ids), 1 / len(ranks))
    has_context = np.ones(len(ids), bool)
    for k, (count, total, distinct) in enumerate(tallies):
        if k:
            has_context[k:] &= known[:-k]
            has_context[:k] = False
        has_context &= total > 0
        rest = DISCOUNT * distinct * p
        count = np.where(known, count, 0)
        mixed = (np.maximum(count - DISCOUNT, 0.0) + rest) / np.maximum(total, 1)
        p = np.where(has_context, mixed, p)
    return p


def cost(file: TokenFile) -> tuple[int, float]:
    """Estimate the bytes of memory, and the seconds of a core, that counting a text takes."""
    counted = min(file.n_tokens, SAMPLE) if file.prompts is None else 0
    return bool(counted) * _BYTES + _TOKEN_BYTES * counted, _TOKEN_S * counted


def score(
    train: TokenFile, val: TokenFile, asked_bytes: int, check: Callable[[], None] = lambda: None
) -> float | None:
    """Return the bits per byte of a training text's counts on a part of its validation text.

    The score is computed at the first call, and stored beside the validation text; `check` as in
    `probabilities`. Prompts and completions, which are not plain text, have none.

    Raises:
        DataError: a token file is damaged, or the training text is shorter than a context.
    """
    text, part = train, validation_set.part(val, asked_bytes)
    if text.prompts is not None or part.prompts is not None or not part.header["bytes"]:
        return None
    of = {"train": text.digest, "validation": part.digest, "format": _FORMAT}
    path = val.path.with_name(_SCORE_FILE)
    with suppress(OSError, ValueError, KeyError, TypeError):  # not computed yet, or damaged
        record = plain_json.read(path)
        if record["of"] == of:
            return float(record["bits"])
    ids = np.asarray(part.tokens, np.int32)
    places = 1 + np.flatnonzero(ids[1:] != part.bos)
    nats = -np.log(probabilities(text, ids, check)[places]).sum()
    bits = float(nats / (math.log(2) * part.text_bytes(ids[places])))
    with suppress(OSError, EnvironmentLacks):  # another user's directory, or a full disk
        replace_file(path, json.dumps({"of": of, "bits": bits}).encode())
        path.chmod(0o600)
    return bits


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield `BLOCK` items at a time: as an index an array is copied to 8 bytes for each item."""
    for first in range(0, len(array), BLOCK):
        yield array[first : first + BLOCK]


def _bincount(numbers: NDArray[Any], least: int) -> Numbers:
    """Count each number from 0 to `least` - 1."""
    return sum(
        (np.bincount(part.astype(np.int64), minlength=least) for part in _pieces(numbers)),
        np.zeros(least, np.int64),
    )


def _keys(symbols: NDArray[Any], places: NDArray[np.intp], k: int, bits: int) -> Keys:
    """The keys at some places: the k symbols before each, the newest highest, then its own."""
    keys = symbols[places].astype(np.uint64)
    for j in range(1, k + 1):
        keys |= symbols[places - j].astype(np.uint64) << np.uint64(bits * (k - j + 1))
    return keys


def _blocks(
    symbols: NDArray[Any], n_symbols: int, run: int, bits: int, orders: int
) -> Iterator[tuple[NDArray[np.bool_], Iterator[tuple[Keys, Numbers]]]]:
    """Yield which newest symbols of a context a block has, and its `_levels`."""
    after = _bincount(symbols, n_symbols)
    of_symbol = (np.cumsum(after) - after) // BLOCK  # the block of each symbol
    for number in np.unique(of_symbol).tolist():
        of_block = of_symbol == number
        parts = enumerate(_pieces(symbols[:-1]))
        at = [1 + k * BLOCK + np.flatnonzero(of_block[part]) for k, part in parts]
        places = np.concatenate([one[one % run >= orders] for one in at])  # not of two runs
        keys, times = np.empty(0, np.uint64), np.empty(0, np.int64)
        for part in _pieces(places):
            more = np.unique(_keys(symbols, part, orders, bits), return_counts=True)
            keys, times = _joined(np.append(keys, more[0]), np.append(times, more[1]))
        yield of_block, _levels(keys, times, bits, orders)


def _joined(keys: Keys, times: Numbers) -> tuple[Keys, Numbers]:
    """Add the counts of equal keys; keys become ascending."""
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return keys[starts], np.add.reduceat(times[order], starts) if len(starts) else times


def _levels(keys: Keys, times: Numbers, bits: int, orders: int) -> Iterator[tuple[Keys, Numbers]]:
    """Yield keys and their counts of each order, from the longest contexts to those of one id."""
    width, own = np.uint64(bits), np.uint64((1 << bits) - 1)
    for k in range(orders, 0, -1):
        yield keys, times
        if k > 1:  # without the oldest symbol, which lies above the next id
            keys, times = np.unique(
                (keys >> width >> width << width) | (keys & own), return_counts=True
            )


def _look_up(keys: Keys, times: Numbers, wanted: Keys, bits: int) -> Numbers:
    """The counts of some keys and of all with their contexts, and the ids of these, (3, n)."""
    if not len(keys):
        return np.zeros((3, len(wanted)), np.int64)
    contexts, starts = np.unique(keys >> np.uint64(bits), return_index=True)
    at, own = _places(contexts, wanted >> np.uint64(bits)), _places(keys, wanted)
    total = np.add.reduceat(times, starts)
    distinct = np.diff(np.append(starts, len(keys)))
    return np.array(
        [np.where(own >= 0, times[own], 0), *np.where(at >= 0, (total[at], distinct[at]), 0)]
    )


def _places(ascending: Keys, wanted: Keys) -> NDArray[np.intp]:
    """The place of each number, or -1."""
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return np.where(ascending[at] == wanted, at, -1)
