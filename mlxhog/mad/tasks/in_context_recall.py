"""In-context recall: pairs of key and value under a new map in every sequence.

T/2 - 1 pairs are drawn, and a last one queries a key among them. A single query has a marker before
it. With pairs of noise the task is noisy in-context recall.

Source: Poli et al. 2024, arXiv:2403.17844.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.options import option
from mlxhog.mad.tasks.task import IGNORED, QUERY_HELP, Fixed, Ints, NoisyTask, Rng, Rows, Task


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Task):
    """The task; keys are 0 .. K-1, values K .. R-1, noise R .. R+N-1."""

    name: ClassVar[str] = "in-context-recall"
    short: ClassVar[str] = "CR"
    about: ClassVar[str] = "the value of a key from earlier in the sequence"
    sudden: ClassVar[bool] = True

    multi_query: bool = option(True, QUERY_HELP)

    @property
    def noise(self) -> tuple[int, float]:
        """N, and the share of noise pairs."""
        return 0, 0.0

    @property
    def ordinary(self) -> int:
        """R, the number of keys and values."""
        return self.vocab - self.noise[0] - (not self.multi_query)

    @property
    def keys(self) -> int:
        """K."""
        return self.ordinary // 2

    @property
    def length(self) -> int:
        """Tokens of a row: a whole sequence without its last token."""
        return self.seq_len - 1 if self.multi_query else self.seq_len

    def broken_rules(self) -> Iterator[str]:
        """Yield the rules that sizes and noise break."""
        why = "a sequence is pairs of key and value, two or more"
        yield from self.at_least("seq_len", 4, why, step=2)
        special = self.noise[0] + (not self.multi_query)
        beside = f" beside {special} for noise and the copy marker" if special else ""
        yield from self.at_least("vocab", 2 + special, f"recall needs a key and a value{beside}")

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; targets are dense, or only the predictable ones."""
        K, R, pairs = self.keys, self.ordinary, self.seq_len // 2 - 1
        row = np.arange(n)[:, None]
        key = rng.integers(0, K, (n, pairs), dtype=np.int32)
        # A map of all K keys has the same distribution as a draw for each new key.
        values = rng.integers(K, R, (n, K), dtype=np.int32)
        whole = np.empty((n, self.length + 1), np.int32)
        whole[:, 0 : 2 * pairs : 2] = key
        whole[:, 1 : 2 * pairs : 2] = values[row, key]
        N, share = self.noise
        if share:
            noisy = rng.random((n, pairs)) < share
            noisy[row[:, 0], rng.integers(0, pairs, n)] = False  # never every pair of a row
            key = np.where(noisy, K, key)  # one more column, for no key
            for at in (0, 1):
                tokens = rng.integers(R, R + N, (n, pairs), dtype=np.int32)
                part = whole[:, at : 2 * pairs : 2]
                part[...] = np.where(noisy, tokens, part)
        probe = _one_of(rng, key, K)
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

    @property
    def noise(self) -> tuple[int, float]:
        """N, and the share of noise pairs."""
        return self.noise_vocab, self.frac_noise

    def broken_rules(self) -> Iterator[str]:
        """Yield the rules that sizes and noise break."""
        yield from super().broken_rules()
        yield from NoisyTask.broken_rules(self)


def _one_of(rng: Rng, key: Ints, K: int) -> Ints:
    """Choose one of a row's keys uniformly; `key` is (n, pairs), where K is no key."""
    n = len(key)
    shown = np.zeros((n, K + 1), bool)
    shown[np.arange(n)[:, None], key] = True
    rank = np.cumsum(shown[:, :K], axis=1, dtype=np.int32)
    chosen = rng.integers(1, rank[:, -1] + 1)
    probe: Ints = np.argmax(rank == chosen[:, None], axis=1)
    return probe


def first_shown(keys: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return for every key (n, pairs) the position of the first equal key in its row."""
    n, pairs = keys.shape
    row = np.arange(n)[:, None]
    order = np.argsort(keys, axis=1, kind="stable")  # equal keys stay in the order of positions
    sorted_keys = keys[row, order]
    begins = np.ones((n, pairs), bool)
    begins[:, 1:] = sorted_keys[:, 1:] != sorted_keys[:, :-1]
    # Positions rise within a run of equal keys, not from run to run: carry the run's index.
    run_start = np.maximum.accumulate(np.where(begins, np.arange(pairs), 0), axis=1)
    first = np.empty((n, pairs), np.int64)
    first[row, order] = order[row, run_start]
    return first
