"""One worker's native scheme over private or shared memory, and small data for linear problems."""

import functools
from collections import namedtuple

import numpy as np

from mlxhog import _native

WIDTH = 16  # floats in a row of x
BOARD_FLOATS = 1024  # a page at the start of a shared segment's floats
KINDS = ("private", "racy", "lossless", "hot_cold", "aig", "round_robin", "sync")


def aligned_bytes(n):
    """Zeros at a 128-byte boundary."""
    raw = np.zeros(n + 128, np.uint8)
    start = -raw.ctypes.data % 128
    return raw[start : start + n]


def alone(kind, n_words=256, **options):
    """The strategy of a run's only worker."""
    board = aligned_bytes(_native.ClassicBoard.bytes(1))
    locks = _native.Locks(np.zeros(n_words, np.uint32), np.zeros(512, np.uint8), 1, 1)
    return _native.ClassicScheme(kind, board, locks, 0, 0, 1, **options)


def board_of(segment, workers):
    """The board in the first page of a segment's floats."""
    return _native.ClassicBoard(segment.floats[:BOARD_FLOATS].view(np.uint8), workers)


def x_of(segment):
    """The parameters behind it, in rows."""
    return segment.floats[BOARD_FLOATS:].reshape(-1, WIDTH)


def scheme_of(segment, kind, rank, workers, generation=1, **options):
    """The strategy of worker `rank`, in table slot rank + 1."""
    words = segment.floats[:BOARD_FLOATS].view(np.uint8)
    locks = _native.Locks(segment.words, segment.table, rank + 1, generation)
    return _native.ClassicScheme(kind, words, locks, 0, rank, workers, **options)


class Sparse(namedtuple("Sparse", "indptr indices values labels shrink d")):
    """Random sparse rows, busiest coordinates first, as every loader makes them."""

    @classmethod
    @functools.cache
    def random(cls, n=300, d=200, *, targets=False):
        """Row lengths 0 to 40, coordinate u with probability about 1 / (u + 8)."""
        rng = np.random.default_rng(0)
        p = 1.0 / (np.arange(d) + 8.0)
        p /= p.sum()
        rows = [np.sort(rng.choice(d, int(rng.integers(0, 40)), False, p)) for _ in range(n)]
        indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
        indices = np.concatenate(rows).astype(np.int32)
        degrees = np.maximum(1, np.bincount(indices, minlength=d))
        labels = rng.standard_normal(n) if targets else np.where(rng.random(n) < 0.5, -1, 1)
        values = rng.standard_normal(len(indices), dtype=np.float32)
        shrink = (2.0 / degrees).astype(np.float32)
        return cls(indptr, indices, values, labels.astype(np.float32), shrink, d)

    def zeros(self):
        """An x of whole rows."""
        return np.zeros((-(-self.d // WIDTH), WIDTH), np.float32)

    def problem(self, x, *, loss="hinge"):
        """The native problem over x."""
        return _native.LinearProblem(x, *self[:5], loss=loss)

    def row(self, e):
        """Coordinates, values and label of a row."""
        at = slice(self.indptr[e], self.indptr[e + 1])
        return self.indices[at], self.values[at], self.labels[e]


def linear(x, indptr, indices, values, labels, shrink=()):
    """The native problem of these sparse rows over x."""
    floats = (np.asarray(one, np.float32) for one in (values, labels, shrink))
    places = np.asarray(indptr, np.int64), np.asarray(indices, np.int32)
    return _native.LinearProblem(x, *places, *floats)


def orders(n, workers, seed=0):
    """A shuffle of n examples, cut into the workers' shares."""
    shuffled = np.random.default_rng(seed).permutation(n).astype(np.int32)
    return [np.ascontiguousarray(share) for share in np.array_split(shuffled, workers)]
