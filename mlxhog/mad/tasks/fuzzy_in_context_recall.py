"""Fuzzy in-context recall: keys and values are motifs of one to a few tokens, padded on the left.

The queried pair is inserted at a random position, unless its key is already there. The position of
the reference may be beyond the last pair, so a few per cent of its sequences end with a query
without an answer; here the pair is inserted at the last possible place. `fuzzy_compat` restores
the reference's behaviour.

Source: Poli et al. 2024, arXiv:2403.17844. Tokens of a motif are drawn without replacement one
after the other; the reference lists every permutation, 250,000 of them per sequence at V 128.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.in_context_recall import first_shown
from mlxhog.mad.tasks.task import (
    IGNORED,
    QUERY_HELP,
    Bools,
    Fixed,
    Ints,
    NoisyTask,
    Rng,
    Rows,
    too_small,
)


@dataclass(frozen=True, kw_only=True)
class FuzzyInContextRecall(NoisyTask):
    """The task; keys are made of 0 .. K-1, values of K .. R-1, noise of R .. R+N-1."""

    name: ClassVar[str] = "fuzzy-in-context-recall"
    short: ClassVar[str] = "FR"
    about: ClassVar[str] = "in-context recall with keys and values of one to a few tokens each"
    sudden: ClassVar[bool] = True

    k_motif: int = option(3, "most tokens of a key", low=1, aliases=("k_motif_size",))
    v_motif: int = option(3, "most tokens of a value", low=1, aliases=("v_motif_size",))
    multi_query: bool = option(True, QUERY_HELP)
    fuzzy_compat: bool = option(
        False, "compat: as in the reference, some final queries have no answer"
    )

    @property
    def ordinary(self) -> int:
        """R, the number of tokens of keys and values."""
        return self.vocab - (1 if self.multi_query else 2) - self.noise_vocab

    @property
    def keys(self) -> int:
        """K."""
        return self.ordinary // 2

    @property
    def pad(self) -> int:
        """The token on the left; the copy marker, if there is one, is the next token."""
        return self.vocab - (1 if self.multi_query else 2)

    @property
    def longest(self) -> int:
        """Tokens of the longest pair."""
        return self.k_motif + self.v_motif

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        yield from super().broken_rules()
        special = self.vocab - self.ordinary
        least = max(2 * self.k_motif, 2 * self.v_motif - 1) + special
        why = (
            f"a key of {self.k_motif} and a value of {self.v_motif} different tokens, from a half "
            f"of the vocabulary each, beside {special} special ones"
        )
        yield from too_small("vocab", self.vocab, why, least)
        why = f"a pair of {self.longest} tokens must fit in twice"
        yield from too_small("seq_len", self.seq_len, why, 2 * self.longest + 1)
        if self.vocab >= least and (self.keys + 1) ** self.k_motif >= 2**63:
            most = int(63 / np.log2(self.keys + 1))
            yield f"k_motif is {self.k_motif}; keys are numbered in 63 bits: at most {most}"

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; targets are dense, or only the predictable ones."""
        shortest = 2 if train else self.k_motif + 1
        count = -(-(self.seq_len - shortest - self.longest) // shortest)  # the most pairs of a row
        asked = _draw_pairs(self, rng, (n, 1), train)
        pairs = _draw_pairs(self, rng, (n, count), train)
        noisy = np.zeros((n, count), bool)
        if self.frac_noise:
            noisy = rng.random((n, count)) < self.frac_noise
        code, asked_code = _codes(self, pairs), _codes(self, asked)
        code = np.where(noisy, -1 - np.arange(count), code)  # noise is never shown again
        first, is_asked = first_shown(code), code == asked_code
        row = np.arange(n)[:, None]
        v_size = np.where(is_asked, asked.v_size, pairs.v_size[row, first])
        v = np.where(is_asked, asked.v, pairs.v[:, row, first])
        pairs = _MotifPairs(pairs.k_size, pairs.k, v_size, v)

        length, asked_length = pairs.k_size + v_size, asked.k_size + asked.v_size
        start = np.cumsum(length, axis=1) - length
        limit = self.seq_len - asked_length - self.longest  # pairs begin before it
        at, put_in = _place_of_asked(self, rng, start, limit, asked_length, is_asked)
        after = put_in & (np.arange(count) >= at)
        start = start + after * asked_length
        fits = start < limit
        total = (length * fits).sum(1, keepdims=True) + put_in * asked_length

        whole = np.full((n, self.seq_len + 1), self.pad, np.int32)
        scored = np.zeros(whole.shape, bool)
        begin = self.seq_len + 1 - asked_length - (not self.multi_query) - total
        shown_before = (first < np.arange(count)) | (is_asked & after)
        _write(
            self,
            rng,
            whole,
            scored,
            begin + start,
            fits,
            pairs,
            noisy,
            shown_before & self.multi_query,
        )
        there, nothing = np.ones((n, 1), bool), np.zeros((n, 1), bool)
        place = begin + np.take_along_axis(start, np.minimum(at, count - 1), 1) - asked_length
        _write(self, rng, whole, scored, place, put_in, asked, nothing, nothing)
        end = self.seq_len + 1 - asked_length
        if not self.multi_query:
            whole[row, end - 1] = self.vocab - 1
        _write(self, rng, whole, scored, end, there, asked, nothing, there)
        x, y = whole[:, :-1], whole[:, 1:]
        return (x, y) if dense else (x, np.where(scored[:, 1:], y, IGNORED))


@dataclass(frozen=True)
class _MotifPairs:
    """Drawn pairs: sizes (n, P), tokens (largest size, n, P); the first `size` tokens count."""

    k_size: Ints
    k: Ints
    v_size: Ints
    v: Ints


def _draw_pairs(
    s: FuzzyInContextRecall, rng: Rng, shape: tuple[int, int], train: bool
) -> _MotifPairs:
    k_size = rng.integers(1 if train else s.k_motif, s.k_motif + 1, shape, dtype=np.int32)
    v_size = rng.integers(1, s.v_motif + 1, shape, dtype=np.int32)
    k = _distinct(rng, shape, s.k_motif, s.keys)
    v = _distinct(rng, shape, s.v_motif, s.ordinary - s.keys) + s.keys
    return _MotifPairs(k_size, k, v_size, v)


def _distinct(rng: Rng, shape: tuple[int, int], size: int, alphabet: int) -> NDArray[np.int32]:
    """Draw `size` different numbers below `alphabet`, in order, for every place of `shape`."""
    task_rows = np.empty((size, *shape), np.int32)
    smaller_first: list[NDArray[np.int32]] = []
    for number in range(size):
        token = rng.integers(0, alphabet - number, shape, dtype=np.int32)
        # The token-th of the remaining numbers: skip the others, from the smallest up.
        for other in smaller_first:
            token += token >= other
        task_rows[number] = largest = token
        for place, other in enumerate(smaller_first):
            smaller_first[place] = np.minimum(other, largest)
            largest = np.maximum(other, largest)
        smaller_first.append(largest)
    return task_rows


def _codes(s: FuzzyInContextRecall, pairs: _MotifPairs) -> NDArray[np.int64]:
    """Number the keys: equal keys, equal numbers from 0."""
    code = np.zeros(pairs.k_size.shape, np.int64)
    for number in range(s.k_motif):
        digit = np.where(number < pairs.k_size, pairs.k[number] + 1, 0)
        code = code * (s.keys + 1) + digit
    return code


def _place_of_asked(
    s: FuzzyInContextRecall,
    rng: Rng,
    start: Ints,
    limit: Ints,
    asked_length: Ints,
    is_asked: Bools,
) -> tuple[Ints, Bools]:
    """Return the pair before which the queried one is inserted, and whether it is."""
    count = start.shape[1]
    position = rng.integers(0, s.seq_len - 2 * asked_length)
    if not s.fuzzy_compat:
        position = np.minimum(position, limit - s.longest)
    reached = start >= position
    at = np.where(reached.any(1), reached.argmax(1), count)[:, None]
    shown = (is_asked & (np.arange(count) < at)).any(1, keepdims=True)
    begin = np.where(at < count, np.take_along_axis(start, np.minimum(at, count - 1), 1), limit)
    return at, ~shown & (begin < limit)


def _write(
    s: FuzzyInContextRecall,
    rng: Rng,
    whole: Ints,
    scored: Bools,
    start: Ints,
    fits: Bools,
    pairs: _MotifPairs,
    noisy: Bools,
    shown_before: Bools,
) -> None:
    """Write the pairs that fit at their starts, and mark the scored values."""
    motifs = [(pairs.k_size, pairs.k, 0 * pairs.k_size, np.zeros_like(shown_before))]
    motifs.append((pairs.v_size, pairs.v, pairs.k_size, shown_before))
    for size, tokens, offset, marked in motifs:
        for number in range(len(tokens)):
            row, pair = np.nonzero(fits & (number < size))
            to = start[row, pair] + offset[row, pair] + number
            token = tokens[number, row, pair]
            if s.frac_noise:
                other = rng.integers(s.ordinary, s.ordinary + s.noise_vocab, len(row))
                token = np.where(noisy[row, pair], other, token)
            whole[row, to] = token
            scored[row, to] = marked[row, pair]
