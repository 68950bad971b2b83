"""Counted n-grams of a training text: a model without a network, the mark of a run.

One sort counts how often each id follows each context of up to K ids. The orders are mixed, from
the shortest context to the longest one that occurs:

    p_k = w_k ML_k + (1 - w_k) p_(k-1)        p_(-1) = 1 / vocabulary

ML_k is the share of an id among the successors of the k ids before it. The weight w_k depends on
the order, on the occurrences of the context (12 buckets, by powers of two), and on the number of
its distinct successors (8 buckets). 25 rounds of expectation maximisation fit the weights to 300
rows of 256 ids of the counted text, each position by the counts without itself: with it, the text
would look as if it had been seen before, and the longest contexts would get all the weight.

K is the number of ids that span 7 bytes on average: 7 bytes, or 2 to 3 ids of a BPE. An occurrence
is one key of 64 bits, exact and not hashed: K + 1 symbols, the newest of the context highest, the
next id lowest. A symbol is the rank of an id among those that occur, so 8 bits suffice for UTF-8
(at most 243 bytes, and BOS). A key with room for fewer symbols shortens the context: 3 ids up to a
vocabulary of 65,536.

Of a text with more than `SAMPLE` tokens, evenly spaced runs are counted.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.data import subset
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError, EnvironmentLacks

CONTEXT = 7
"""Bytes of context of the mark."""
SAMPLE, _RUN = 1 << 24, 1 << 16  # most tokens that are counted, and tokens in a run of a sample
BUCKETS = 12 * 8
_ROUNDS, _ROWS, _ROW = 25, 300, 256
_MOST_ORDERS = 63  # a key of 64 bits has room for no more
_SCORE_FILE = "counts.json"

Positions = NDArray[np.int64]


class _Level(NamedTuple):
    """The counts of one order k.

    Attributes:
        keys: each (context of k ids, next id) that occurs, ascending, (m,) uint64.
        times: how often each occurs, (m,) int64.
        contexts: the contexts alone, ascending, (c,) uint64.
        starts: the first key of each context, and m, (c + 1,).
    """

    keys: NDArray[np.uint64]
    times: NDArray[np.int64]
    contexts: NDArray[np.uint64]
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, keys: NDArray[np.uint64], times: NDArray[np.int64], bits: int) -> Self:
        contexts, starts = np.unique(keys >> np.uint64(bits), return_index=True)
        return cls(keys, times, contexts, np.append(starts, len(keys)))


@dataclass(frozen=True)
class Counts:
    """The counts of a text and the weights of their orders.

    Attributes:
        ranks: of each id among those that occur, or -1, (vocabulary,).
        levels: the counts of each order.
        weights: of each order and bucket, (K + 1, `BUCKETS`) float32.

    Concurrency: any number of threads and processes may read at once.
    """

    ranks: NDArray[np.int64]
    levels: tuple[_Level, ...]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, file: TokenFile) -> Self:
        """Count a token file, or a sample of it, and fit the weights.

        Raises:
            DataError: the text is shorter than a context, or the file is damaged.
        """
        ids, begins = _sampled(file)
        text = file.n_tokens - int(file.header["documents"])
        spanning = math.ceil(CONTEXT * text / max(1, int(file.header["bytes"])))
        orders = min(max(spanning, 1), _MOST_ORDERS)
        if file.n_tokens <= orders:
            raise DataError(
                f"{file.path} has {file.n_tokens} tokens, too few to count what follows {orders}"
            )
        present, ranks = np.unique(ids), np.full(int(file.header["vocab"]), -1)
        ranks[present] = np.arange(len(present))
        bits = _bits(len(present))
        levels = _levels(ranks[ids].astype(np.uint64), begins, bits, min(orders, 64 // bits - 1))
        counts = cls(ranks, levels, np.zeros((len(levels), BUCKETS), np.float32))
        return replace(counts, weights=counts._fitted(ids, begins))

    @property
    def orders(self) -> int:
        """Ids of the longest context."""
        return len(self.weights) - 1

    def probabilities(
        self, ids: NDArray[np.int32], positions: Positions, *, without_itself: bool = False
    ) -> NDArray[np.float64]:
        """Return the probability of the id at each position after the ids before it, (m,).

        Args:
            ids: a text, (n,).
            positions: places in it, (m,).
            without_itself: whether to leave the occurrence at the position out of the counts; the
                text then is the counted one, and a whole context stands before each position.
        """
        ml, bucket = self._evidence(ids, positions, without_itself)
        return self._mixtures(self.weights, ml, bucket)[-1]

    def bits_per_byte(self, file: TokenFile) -> float:
        """Return the bits per byte of a held-out token file, BOS not counted, as of a network."""
        ids = np.asarray(file.tokens, np.int32)
        positions = 1 + np.flatnonzero(ids[1:] != file.bos)
        nats = -np.log(self.probabilities(ids, positions)).sum()
        return float(nats / (math.log(2) * file.n_bytes(positions)))

    # -- the weights -----------------------------------------------------------------------------

    def _evidence(
        self, ids: NDArray[np.int32], positions: Positions, without_itself: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """ML_k of the id at each position, and the bucket of its context, or -1: (K + 1, m)."""
        bits, ranks = _bits(int(self.ranks.max()) + 1), self.ranks[ids]
        known, symbols = ranks >= 0, ranks.clip(0).astype(np.uint64)
        shape = len(self.levels), len(positions)
        ml, bucket = np.zeros(shape, np.float32), np.full(shape, -1, np.int16)
        found = np.ones(len(positions), bool)  # whether the context occurs
        for k, level in enumerate(self.levels):
            key = _keys(symbols, k, bits)[positions]
            if k:
                found &= (positions >= k) & known[positions - k]
            context, own = _places(level.contexts, key >> np.uint64(bits)), _places(level.keys, key)
            found &= context >= 0
            count = np.where(found & known[positions] & (own >= 0), level.times[own], 0)
            total = np.add.reduceat(level.times, level.starts[:-1])[context]
            distinct = np.diff(level.starts)[context]
            if without_itself:
                if not count.all():
                    raise ValueError("an occurrence that was not counted cannot be left out")
                distinct, count, total = distinct - (count == 1), count - 1, total - 1
            has = found & (total > 0)
            np.divide(count.astype(np.float32), total.astype(np.float32), out=ml[k], where=has)
            width = [np.frexp(n.astype(np.float64))[1] for n in (total, distinct)]  # in bits
            place = width[0].clip(max=12) * 8 - 8 + width[1].clip(max=8) - 1
            bucket[k][has] = place[has]
        return ml, bucket

    def _mixtures(
        self, weights: NDArray[Any], ml: NDArray[np.float32], bucket: NDArray[np.int16]
    ) -> list[NDArray[np.float64]]:
        """p_(-1), p_0, ..., p_K."""
        mixtures = [np.full(ml.shape[1], 1 / len(self.ranks))]
        for w, share, place in zip(weights, ml, bucket, strict=True):
            own = np.where(place >= 0, w[place], 0.0)
            mixtures.append(own * share + (1 - own) * mixtures[-1])
        return mixtures

    def _fitted(self, ids: NDArray[np.int32], begins: Positions) -> NDArray[np.float32]:
        """The weights, fitted to rows of the counted runs `ids[begins[r]:begins[r + 1]]`."""
        starts = np.linspace(0, max(len(ids) - _ROW, 0), _ROWS).astype(np.int64)
        positions = np.unique((starts[:, None] + np.arange(_ROW)).clip(max=len(ids) - 1))
        begin = begins[np.searchsorted(begins, positions, side="right") - 1]
        positions = positions[positions - begin >= self.orders]  # the others are only contexts
        ml, bucket = self._evidence(ids, positions, without_itself=True)
        place = np.where(bucket >= 0, bucket, BUCKETS)  # the last one: no context, no weight
        weights = np.full((len(self.weights), BUCKETS + 1), 0.5)
        for _ in range(_ROUNDS):
            weights[:, BUCKETS] = 0.0
            mixtures = self._mixtures(weights, ml, bucket)
            reached = np.ones(len(positions))  # probability that no longer context gave the id
            for k in range(self.orders, -1, -1):
                gave = reached * weights[k, place[k]] * ml[k] / mixtures[k + 1]
                given = np.bincount(place[k], gave, BUCKETS + 1)
                of = np.bincount(place[k], reached, BUCKETS + 1)
                weights[k] = (given + 0.5) / (of + 1)  # one more position, so never 0 or 1
                reached = reached - gave
        return np.ascontiguousarray(weights[:, :BUCKETS], np.float32)


def score(train: Path, val: Path, asked_bytes: int) -> float | None:
    """Return the bits per byte of a training text's counts on a part of its held-out text.

    The score is computed at the first call, and stored beside the held-out text.

    Args:
        train: token file of the training text.
        val: token file of the held-out text.
        asked_bytes: size of the part, as `subset.of` takes it.

    Returns:
        None for prompts and completions, which are not plain text.

    Raises:
        DataError: a token file is damaged, or the training text is shorter than a context.
    """
    text, part = TokenFile.open(train), subset.of(TokenFile.open(val), asked_bytes)
    if text.prompts is not None or part.prompts is not None or not part.header["bytes"]:
        return None
    of = {"train": text.digest, "held_out": part.digest, "context": CONTEXT}
    path = val.with_name(_SCORE_FILE)
    try:
        record = plain_json.read(path)
        if record["of"] == of and 0 < record["bits"] < math.inf:
            return float(record["bits"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not computed yet, or damaged
    bits = Counts.of(text).bits_per_byte(part)
    with suppress(OSError, EnvironmentLacks):  # another user's directory, or a full disk
        replace_file(path, json.dumps({"of": of, "bits": bits}).encode())
    return bits


def _bits(symbols: int) -> int:
    """Bits of a symbol, the rank of an id among this number of ids."""
    return max(1, (symbols - 1).bit_length())


def _keys(symbols: NDArray[np.uint64], k: int, bits: int) -> NDArray[np.uint64]:
    """The key of every position: the k symbols before it, the newest highest, then its own."""
    keys = symbols.copy()
    for j in range(1, min(k + 1, len(symbols))):
        keys[j:] |= symbols[:-j] << np.uint64(bits * (k - j + 1))
    return keys


def _levels(
    symbols: NDArray[np.uint64], begins: Positions, bits: int, orders: int
) -> tuple[_Level, ...]:
    """The counts of each order: of the longest contexts by a sort, of others from longer ones."""
    first = np.repeat(begins[:-1], np.diff(begins))
    whole = np.arange(len(symbols)) - first >= orders  # no context spans two runs
    keys, times = np.unique(_keys(symbols, orders, bits)[whole], return_counts=True)
    levels = [_Level.of(keys, times, bits)]
    width = np.uint64(bits)
    for _ in range(orders):  # without the oldest symbol, which lies above the next id
        keys = (keys >> width >> width << width) | (keys & np.uint64((1 << bits) - 1))
        order = np.argsort(keys, kind="stable")
        keys, starts = np.unique(keys[order], return_index=True)
        times = np.add.reduceat(times[order], starts)
        levels.append(_Level.of(keys, times, bits))
    return tuple(reversed(levels))


def _places(ascending: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.intp]:
    """The place of each number, or -1."""
    at = np.searchsorted(ascending, wanted).clip(max=len(ascending) - 1)
    return np.where(ascending[at] == wanted, at, -1)


def _sampled(file: TokenFile) -> tuple[NDArray[np.int32], Positions]:
    """The tokens to count, run after run, and where each run begins; then their number."""
    n, run = file.n_tokens, file.n_tokens
    starts = np.zeros(1, np.int64)
    if n > SAMPLE:
        run, starts = _RUN, np.linspace(0, n - _RUN, SAMPLE // _RUN).astype(np.int64)
    ids = np.concatenate([file.tokens[start : start + run] for start in starts.tolist()])
    file.check_known(ids)
    return ids.astype(np.int32), np.arange(len(starts) + 1, dtype=np.int64) * run
