"""Fuzzy in-context recall: keys and values are motifs of one to a few tokens, padded on the left.

The queried pair is inserted at a random position, unless its key is already there. The position of
the reference may be beyond the last pair, so a few per cent of its sequences end with a query
without an answer; here the pair is inserted at the last possible place. `fuzzy_compat` restores
the reference's behaviour.

Source: Poli et al. 2024, arXiv:2403.17844. Tokens of a motif are drawn without replacement one
after the other; the reference lists every permutation, 250,000 of them per sequence at V 128.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.in_context_recall import first_shown
from mlxhog.mad.tasks.task import IGNORED, QUERY_HELP, Bools, Fixed, Ints, NoisyTask, Rng, Rows

Pairs = tuple[Ints, Bools]
"""Tokens of pairs (k_motif + v_motif, n, P), and those among them that are shown."""


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
    def pad(self) -> int:
        """The token on the left; the copy marker, if there is one, is the next token."""
        return self.vocab - (1 if self.multi_query else 2)

    @property
    def ordinary(self) -> int:
        """R, the number of tokens of keys and values."""
        return self.pad - self.noise_vocab

    @property
    def keys(self) -> int:
        """K."""
        return self.ordinary // 2

    @property
    def longest(self) -> int:
        """Tokens of the longest pair."""
        return self.k_motif + self.v_motif

    def broken_rules(self) -> Iterator[str]:
        """Yield the broken rules."""
        yield from super().broken_rules()
        special = self.vocab - self.ordinary
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
        """Draw n rows; targets are dense, or only the predictable ones."""
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

        text = np.full((n, T + 1), self.pad, np.int32)
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
