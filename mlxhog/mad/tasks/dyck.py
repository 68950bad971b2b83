"""Dyck: brackets of k kinds, nested at most m deep; predict the one bracket that may close.

    inputs    an opening bracket 0 .. k-1, or the closing one of the last open bracket, k .. 2k-1
    targets   the bracket that closes the last open one, or the end 2k where every one is closed

A row is a prefix of a word without end: at depth 0 a bracket opens, at depth m one closes, between
them either has probability 1/2; the kind is uniform. So the depth is a walk between two walls, and
the target at every position is the top of a stack of at most m brackets, a finite state that has to
be held over any distance.

Rows to train on have `seq_len` brackets, scored rows `test_length`.

Source: Hewitt et al. 2020, RNNs can generate bounded hierarchical languages with optimal memory,
arXiv:2010.07515, for k and m; Suzgun et al. 2019, arXiv:1911.03329, for the prediction of the
possible next brackets at every position.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.mad.tasks.state_tracking import states
from mlxhog.mad.tasks.task import Bools, Fixed, Ints, LongerTest, Rng, Rows


@dataclass(frozen=True, kw_only=True)
class Dyck(LongerTest):
    """The task; opening brackets are 0 .. k-1, closing ones k .. 2k-1, the end is 2k."""

    name: ClassVar[str] = "dyck"
    short: ClassVar[str] = "Dyck"
    about: ClassVar[str] = "the bracket that may close, held beyond the training length"

    kinds: int = option(4, "k, kinds of brackets", low=1, high=2**19)
    depth: int = option(4, "m, most open brackets at once", low=1, high=2**10)

    @property
    def tokens(self) -> int:
        """Two brackets of every kind, and the end."""
        return 2 * self.kinds + 1

    def draw(self, rng: Rng, n: int, *, train: bool, dense: bool, fixed: Fixed) -> Rows:
        """Draw n rows; scored rows are longer."""
        length = self.seq_len if train else self.test_length
        m = self.depth
        walk = np.arange(m + 1, dtype=np.int32)[:, None] + np.array([-1, 1], np.int32)
        walk[0], walk[m] = 1, m - 1
        depth = states(walk, rng.integers(0, 2, (n, length), dtype=np.int8))
        opens = np.diff(depth, axis=1, prepend=0) > 0
        kind = rng.integers(0, self.kinds, (n, length), dtype=np.int32)
        y = _closing(opens, depth, kind, self)
        before = np.concatenate([np.full((n, 1), 2 * self.kinds, np.int32), y[:, :-1]], axis=1)
        return np.where(opens, kind, before), y


def _closing(opens: Bools, depth: Ints, kind: Ints, s: Dyck) -> Ints:
    """Return the bracket that closes the last open one after each position, or the end.

    It is the top of the row's stack, whose bottom is the end.
    """
    n, length = opens.shape
    stacks = np.full((s.depth + 1) * n, 2 * s.kinds, np.int32)
    tops = depth.T * n + np.arange(n)
    y = np.empty((length, n), np.int32)
    for at, top in enumerate(tops):
        stacks[top] = y[at] = np.where(opens[:, at], s.kinds + kind[:, at], stacks[top])
    return y.T
