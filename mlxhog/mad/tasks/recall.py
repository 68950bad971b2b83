"""Tasks that ask for the value of a key from earlier in the row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.data.batch import IGNORED
from mlxhog.mad.tasks.task import Bools, Divided, Fixed, Ints, NoisyTask, Rng, Rows, Task

QUERY_HELP = "score every value whose key occurred before, not only the last value"


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Divided):
    """In-context recall: pairs of key and value under a new map in every sequence.

    T/2 - 1 pairs are drawn, and a last one queries a key among them. A single query has a marker
    before it. With pairs of noise the task is noisy in-context recall.

    Keys are 0 .. K-1, values K .. R-1, noise R .. R+N-1.

    Source: Poli et al. 2024, arXiv:2403.17844.
    """

    name: ClassVar[str] = "in-context-recall"
    short: ClassVar[str] = "CR"
    about: ClassVar[str] = "the value of a key from earlier in the sequence"
    phase_transition: ClassVar[bool] = True

    multi_query: bool = option(True, QUERY_HELP)

    @property
    def special(self) -> int:
        return 0 if self.multi_query else 1

    @property
    def length(self) -> int:
        return self.seq_len - 1 if self.multi_query else self.seq_len

    def broken_rules(self) -> Iterator[str]:
        why = "a sequence is pairs of key and value, two or more"
        yield from self.at_least("seq_len", 4, why, step=2)
        special = self.noise_vocab + self.special
        beside = f" beside {special} for noise and the copy marker" if special else ""
        yield from self.at_least("vocab", 2 + special, f"recall needs a key and a value{beside}")

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        K, R, pairs = self.keys, self.ordinary, self.seq_len // 2 - 1
        row = np.arange(n)[:, None]
        key = rng.integers(0, K, (n, pairs), dtype=np.int32)
        # A map of all K keys has the same distribution as a draw for each new key.
        values = rng.integers(K, R, (n, K), dtype=np.int32)
        whole = np.empty((n, self.length + 1), np.int32)
        whole[:, 0 : 2 * pairs : 2] = key
        whole[:, 1 : 2 * pairs : 2] = values[row, key]
        if self.frac_noise:
            noisy = rng.random((n, pairs)) < self.frac_noise
            noisy[row[:, 0], rng.integers(0, pairs, n)] = False  # never every pair of a row
            key = np.where(noisy, K, key)  # one more column, for no key
            for at in (0, 1):
                tokens = rng.integers(R, R + self.noise_vocab, (n, pairs), dtype=np.int32)
                part = whole[:, at : 2 * pairs : 2]
                part[...] = np.where(noisy, tokens, part)
        # One of the keys of the row, uniformly.
        shown = np.zeros((n, K + 1), bool)
        shown[row, key] = True
        rank = np.cumsum(shown[:, :K], axis=1, dtype=np.int32)
        chosen = rng.integers(1, rank[:, -1] + 1)
        probe = np.argmax(rank == chosen[:, None], axis=1)
        if not self.multi_query:
            whole[:, -3] = self.vocab - 1
        whole[:, -2] = probe
        whole[:, -1] = values[row[:, 0], probe]
        x, y = whole[:, :-1], whole[:, 1:]
        if dense:
            return x, y
        scored = np.zeros(y.shape, bool)
        if self.multi_query:
            scored[:, 0 : 2 * pairs : 2] = (first_shown(key) < np.arange(pairs)) & (key < K)
        scored[:, -1] = True
        return x, np.where(scored, y, IGNORED)


@dataclass(frozen=True, kw_only=True)
class NoisyInContextRecall(InContextRecall, NoisyTask):
    """The variant with noise between the pairs."""

    name: ClassVar[str] = "noisy-in-context-recall"
    short: ClassVar[str] = "NR"
    about: ClassVar[str] = "in-context recall among noise tokens"

    vocab: int = 32
    noise_vocab: int = 16
    frac_noise: float = 0.2

    def broken_rules(self) -> Iterator[str]:
        yield from super().broken_rules()
        yield from NoisyTask.broken_rules(self)


def first_shown(keys: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return for every key (n, pairs) the position of the first equal key in its row."""
    n, pairs = keys.shape
    _, number = np.unique(keys, return_inverse=True)  # small, so that rows can be told apart
    of_row = number.reshape(n, pairs) + keys.size * np.arange(n)[:, None]
    _, first, which = np.unique(of_row, return_index=True, return_inverse=True)
    position: NDArray[np.int64] = first[which].reshape(n, pairs) % pairs
    return position


Pairs = tuple[Ints, Bools]
"""Tokens of pairs (k_motif + v_motif, n, P), and those among them that are shown."""


@dataclass(frozen=True, kw_only=True)
class FuzzyInContextRecall(NoisyTask):
    """Fuzzy in-context recall: keys and values are motifs of one to a few tokens, after padding.

    The queried pair is inserted at a random position, unless its key is already there. The position
    of the reference may be beyond the last pair, so a few per cent of its sequences end with a
    query without an answer; here the pair is inserted at the last possible place. `fuzzy_compat`
    restores the reference's placement.

    Keys are made of 0 .. K-1, values of K .. R-1, noise of R .. R+N-1.

    Source: Poli et al. 2024, arXiv:2403.17844. Tokens of a motif are drawn without replacement one
    after the other; the reference lists every permutation, 250,000 of them per sequence at V 128.
    """

    name: ClassVar[str] = "fuzzy-in-context-recall"
    short: ClassVar[str] = "FR"
    about: ClassVar[str] = "in-context recall with keys and values of one to a few tokens each"
    phase_transition: ClassVar[bool] = True

    k_motif: int = option(3, "tokens of the longest key", low=1, aliases=("k_motif_size",))
    v_motif: int = option(3, "tokens of the longest value", low=1, aliases=("v_motif_size",))
    multi_query: bool = option(True, QUERY_HELP)
    fuzzy_compat: bool = option(
        False, "compat: as in the reference, some final queries have no answer"
    )

    @property
    def special(self) -> int:
        """The padding on the left, and the copy marker, if there is one, behind it."""
        return 1 if self.multi_query else 2

    @property
    def longest(self) -> int:
        """Tokens of the longest pair."""
        return self.k_motif + self.v_motif

    def broken_rules(self) -> Iterator[str]:
        yield from super().broken_rules()
        special = self.noise_vocab + self.special
        why = (
            f"a key of {self.k_motif} and a value of {self.v_motif} different tokens, from a half "
            f"of the vocabulary each, beside {special} special ones"
        )
        least = max(2 * self.k_motif, 2 * self.v_motif - 1) + special
        yield from self.at_least("vocab", least, why)
        why = f"a pair of {self.longest} tokens must fit in twice"
        yield from self.at_least("seq_len", 2 * self.longest + 1, why)
        if self.vocab >= least and (self.keys + 1) ** self.k_motif >= 2**63:
            most = int(63 / np.log2(self.keys + 1))
            yield f"k_motif is {self.k_motif}; keys are numbered in 63 bits: at most {most}"

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        T, row = self.seq_len, np.arange(n)[:, None]
        shortest = 2 if train else self.k_motif + 1
        count = -(-(T - shortest - self.longest) // shortest)  # the most pairs of a row
        asked, pairs = (self._pairs(rng, (n, size), train) for size in (1, count))
        noisy = np.zeros((n, count), bool)
        if self.frac_noise:
            noisy = rng.random((n, count)) < self.frac_noise
        code = np.where(noisy, -1 - np.arange(count), self._codes(pairs))  # noise is shown once
        first, is_asked = first_shown(code), code == self._codes(asked)
        for part, own in zip(pairs, asked, strict=True):  # equal keys have equal values
            value = part[self.k_motif :]
            value[...] = np.where(is_asked, own[self.k_motif :], value[:, row, first])

        length, asked_length = pairs[1].sum(0), asked[1].sum(0)
        start = np.cumsum(length, axis=1) - length
        limit = T - asked_length - self.longest  # pairs begin before it
        at, put_in = self._place_of_asked(rng, start, limit, asked_length, is_asked)
        after = put_in & (np.arange(count) >= at)
        start = start + after * asked_length
        fits = start < limit
        total = (length * fits).sum(1, keepdims=True) + put_in * asked_length

        text = np.full((n, T + 1), self.vocab - self.special, np.int32)
        scored = np.zeros(text.shape, bool)

        def write(pairs: Pairs, start: Ints, fits: Bools, noisy: Bools, marked: Bools) -> None:
            """Write the pairs that fit at their starts, and mark the scored values."""
            tokens, shown = pairs
            places = start + shown.cumsum(0) - shown
            for number, place in enumerate(places):
                row, pair = np.nonzero(fits & shown[number])
                token, to = tokens[number, row, pair], place[row, pair]
                if self.frac_noise:
                    other = rng.integers(self.ordinary, self.ordinary + self.noise_vocab, len(row))
                    token = np.where(noisy[row, pair], other, token)
                text[row, to] = token
                scored[row, to] = marked[row, pair] & (number >= self.k_motif)

        end = T + 1 - asked_length
        begin = end - (not self.multi_query) - total
        shown_before = (first < np.arange(count)) | (is_asked & after)
        write(pairs, begin + start, fits, noisy, shown_before & self.multi_query)
        there, nothing = np.ones((n, 1), bool), np.zeros((n, 1), bool)
        place = begin + np.take_along_axis(start, np.minimum(at, count - 1), 1) - asked_length
        write(asked, place, put_in, nothing, nothing)
        if not self.multi_query:
            text[row, end - 1] = self.vocab - 1
        write(asked, end, there, nothing, there)
        x, y = text[:, :-1], text[:, 1:]
        return (x, y) if dense else (x, np.where(scored[:, 1:], y, IGNORED))

    def _pairs(self, rng: Rng, shape: tuple[int, int], train: bool) -> Pairs:
        least = 1 if train else self.k_motif
        k_size = rng.integers(least, self.k_motif + 1, shape, dtype=np.int32)
        v_size = rng.integers(1, self.v_motif + 1, shape, dtype=np.int32)
        k = _distinct(rng, shape, self.k_motif, self.keys)
        v = _distinct(rng, shape, self.v_motif, self.ordinary - self.keys) + self.keys
        shown = [np.arange(len(t))[:, None, None] < size for t, size in ((k, k_size), (v, v_size))]
        return np.concatenate([k, v]), np.concatenate(shown)

    def _codes(self, pairs: Pairs) -> NDArray[np.int64]:
        """Number the keys: equal keys, equal numbers from 0."""
        code = np.zeros(pairs[0].shape[1:], np.int64)
        for token, is_shown, _ in zip(*pairs, range(self.k_motif), strict=False):
            code = code * (self.keys + 1) + np.where(is_shown, token + 1, 0)
        return code

    def _place_of_asked(
        self, rng: Rng, start: Ints, limit: Ints, asked_length: Ints, is_asked: Bools
    ) -> tuple[Ints, Bools]:
        """Return the pair before which the queried one is inserted, and whether it is."""
        count = start.shape[1]
        position = rng.integers(0, self.seq_len - 2 * asked_length)
        if not self.fuzzy_compat:
            position = np.minimum(position, limit - self.longest)
        reached = start >= position
        at = np.where(reached.any(1), reached.argmax(1), count)[:, None]
        shown = (is_asked & (np.arange(count) < at)).any(1, keepdims=True)
        begin = np.where(at < count, np.take_along_axis(start, np.minimum(at, count - 1), 1), limit)
        return at, ~shown & (begin < limit)


def _distinct(rng: Rng, shape: tuple[int, int], size: int, alphabet: int) -> NDArray[np.int32]:
    """Draw `size` different numbers below `alphabet`, in order, for every place of `shape`."""
    drawn = np.empty((size, *shape), np.int32)
    for number in range(size):
        token = rng.integers(0, alphabet - number, shape, dtype=np.int32)
        # The token-th of the remaining numbers: skip the others, from the smallest up.
        for other in np.sort(drawn[:number], axis=0):
            token += token >= other
        drawn[number] = token
    return drawn


@dataclass(frozen=True, kw_only=True)
class MultiQueryAssociativeRecall(Task):
    """Multi-query associative recall (MQAR): pairs of key and value, then every key once more.

        k1 v1 ... kP vP | (T - 2P) / 2 places of two tokens; P of them begin with a key

    A key is answered at its own position, by its value, which is not in the row again. Keys are
    taken in the order of the pairs, and each draws a free place g = 1, 2, ... with weight g^(a -
    1): in text, the gap before a repetition follows a power law. All other tokens are 0, as in the
    paper's runs, or random ones of the whole vocabulary, which is harder: some repeat keys.

    0 is a filler, keys are 1 .. K, values K+1 .. V-1.

    Source: Arora et al. 2023, Zoology, arXiv:2312.04927; HazyResearch/zoology, whose distributions
    are the same. Differences: the default has 64 tokens instead of 8,192, so that small candidates
    solve it in minutes; the vocabulary need not be larger than T; pairs are shown once.
    """

    name: ClassVar[str] = "multi-query-associative-recall"
    short: ClassVar[str] = "MQAR"
    about: ClassVar[str] = "the values of several keys from the beginning of the sequence"
    phase_transition: ClassVar[bool] = True

    vocab: int = 64
    seq_len: int = 64
    n_pairs: int = option(
        4, "P, pairs of key and value, and queries", low=1, aliases=("num_kv_pairs", "pairs")
    )
    power_a: float = option(
        0.01,
        "exponent of the power law of gaps; 1 is uniform, less favors short ones",
        above=0,
        high=1,
    )
    random_fill: bool = option(
        False, "fill with random tokens instead of 0", aliases=("random_non_queries",)
    )

    @property
    def keys(self) -> int:
        """K, the number of keys."""
        return self.vocab // 2 - 1

    def broken_rules(self) -> Iterator[str]:
        P = self.n_pairs
        why = f"{P} keys in its first half, beside the filler 0, and {P} values in its second half"
        yield from self.at_least("vocab", 2 * P + 2, why)
        why = f"{P} pairs and as many queries have two tokens each"
        yield from self.at_least("seq_len", 4 * P, why, step=2)

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        P, shape = self.n_pairs, (n, self.seq_len)
        x = np.zeros(shape, np.int32)
        if self.random_fill:
            x = rng.integers(0, self.vocab, shape, np.int32)
        y = np.full(shape, IGNORED, np.int32)
        key = _different(rng, n, P, 1, self.keys + 1)
        value = _different(rng, n, P, self.keys + 1, self.vocab)
        x[:, 0 : 2 * P : 2], x[:, 1 : 2 * P : 2] = key, value
        weights = np.arange(1, (self.seq_len - 2 * P) // 2 + 1) ** (self.power_a - 1)
        row, at = np.arange(n)[:, None], 2 * P + 2 * _places(rng, n, P, weights / weights.sum())
        x[row, at], y[row, at] = key, value
        return x, y


def _different(rng: Rng, n: int, count: int, low: int, high: int) -> Ints:
    """Draw different numbers of low .. high - 1 (n, count), in any order alike.

    The choice is Floyd's, whose time does not depend on the range (Bentley and Floyd 1987).
    """
    chosen = np.empty((n, count), np.int32)
    for at, last in enumerate(range(high - count, high)):
        one = rng.integers(low, last + 1, n, np.int32)
        is_taken = (chosen[:, :at] == one[:, None]).any(1)
        chosen[:, at] = np.where(is_taken, last, one)
    return rng.permuted(chosen, axis=1)


def _places(rng: Rng, n: int, P: int, weights: NDArray[np.float64]) -> Ints:
    """Draw a place for each key (n, P), from 0, one after the other among the free ones.

    The first of exponential clocks with the weights as rates to ring is a draw by weight, and the
    next ones are draws among the others (Efraimidis and Spirakis 2006).
    """
    rings = rng.standard_exponential((n, len(weights)), np.float32) / weights.astype(np.float32)
    first = np.tile(np.arange(P), (n, 1))
    if P < len(weights):
        first = np.argpartition(rings, P - 1, axis=1)[:, :P]
    order = np.argsort(np.take_along_axis(rings, first, 1), axis=1)
    places: Ints = np.take_along_axis(first, order, 1)
    return places
