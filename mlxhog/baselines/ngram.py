"""The n-gram baseline: an interpolated Kneser-Ney model of a training text.

The counts of a token after each context of up to K tokens are mixed, from the shortest context to
the longest one that occurs (interpolated Kneser-Ney: Kneser and Ney 1995, Improved Backing-Off for
m-Gram Language Modeling; Chen and Goodman 1999):

    p_k = (max(count - d, 0) + d distinct p_(k-1)) / total        p_(-1) = 1 / vocabulary

with d = 0.75. For the longest context count is the number of occurrences of the id after it, for a
shorter one the number of distinct ids before both; total is the sum of the counts after the
context, and distinct the number of ids there.

An occurrence is one key of 64 bits, exact and not hashed: K + 1 symbols, the newest of the context
highest, the next id lowest. A symbol is the rank of an id among those that occur. A key with room
for fewer symbols shortens the context: 3 ids up to a vocabulary of 65,536.

Contexts with different newest ids have nothing in common, so about `BLOCK` occurrences are counted
at a time, in all orders, and only what the asked text needs is kept: 2^24 tokens take 200 MB.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

DISCOUNT = 0.75
BLOCK = 1 << 20  # occurrences that are counted at a time

Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]


def probabilities(
    counted: NDArray[Any], ids: NDArray[np.int32], *, n_ids: int, orders: int, run: int,
    check: Callable[[], None],
) -> NDArray[np.float64]:  # fmt: skip
    """Return the probability of each token of a text given those before it, (n,).

    Args:
        counted: the ids of the training text, in runs that follow each other.
        ids: the text, of which an id may be absent from the training text.
        n_ids: size of the vocabulary.
        orders: ids of the longest context, if a key has room for them.
        run: ids of a run.
        check: called before each block; it may raise to end the count.
    """
    occurs = _bincount(counted, n_ids) > 0
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


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield `BLOCK` items at a time: as an index an array is copied to 8 bytes for each item."""
    for first in range(0, len(array), BLOCK):
        yield array[first : first + BLOCK]


def _bincount(numbers: NDArray[Any], least: int) -> Numbers:
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
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return np.where(ascending[at] == wanted, at, -1)
