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

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxhog.config.options import option
from mlxhog.mad.tasks.dataset import Dataset
from mlxhog.mad.tasks.findings import ENOUGH_ROWS, Bools, Findings, first_place
from mlxhog.mad.tasks.state_tracking import states
from mlxhog.mad.tasks.task import Fixed, Ints, LongerTest, Rows, TaskType


@dataclass(frozen=True, kw_only=True)
class Dyck(LongerTest):
    """Settings; opening brackets are 0 .. k-1, closing ones k .. 2k-1, the end is 2k."""

    task: ClassVar[str] = "dyck"

    kinds: int = option(4, "k, kinds of brackets", low=1, high=2**19)
    depth: int = option(4, "m, most open brackets at once", low=1, high=2**10)

    @property
    def tokens(self) -> int:
        """Two brackets of every kind, and the end."""
        return 2 * self.kinds + 1


def draw(
    s: Dyck, rng: np.random.Generator, n: int, *, train: bool, dense: bool, fixed: Fixed
) -> Rows:
    """Draw n rows; scored rows are longer."""
    length = s.seq_len if train else s.test_length
    m = s.depth
    walk = np.arange(m + 1, dtype=np.int32)[:, None] + np.array([-1, 1], np.int32)
    walk[0], walk[m] = 1, m - 1
    depth = states(walk, rng.integers(0, 2, (n, length), dtype=np.int8))
    opens = np.diff(depth, axis=1, prepend=0) > 0
    kind = rng.integers(0, s.kinds, (n, length), dtype=np.int32)
    y = _closing(opens, depth, kind, s)
    before = np.concatenate([np.full((n, 1), 2 * s.kinds, np.int32), y[:, :-1]], axis=1)
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


def check(s: Dyck, findings: Findings, data: Dataset) -> None:
    """Apply invariants 22 to 24, and the bounds."""
    for split, (x, y) in data.splits().items():
        if not s.has_length(findings, 22, split, x):
            continue
        expected, bad, depth = _nested(x, s)

        def say(row: int, x: Ints = x, bad: Bools = bad, depth: Ints = depth) -> str:
            at = first_place(bad[row])
            return (
                f"token {x[row, at]} at {at}, after {depth[row, at]} open brackets; expected a "
                f"bracket 0..{2 * s.kinds - 1}, nested at most {s.depth} deep"
            )

        good = findings.rows(23, split, np.any(bad, 1), say, np.ones(len(x), bool))
        good = findings.targets(24, split, y, expected, good)
        if len(x) >= ENOUGH_ROWS and good.any():
            opens = x[good] < s.kinds
            findings.uniform("uniform kinds", split, x[good][opens], 0, s.kinds)
            free = (depth[good] > 0) & (depth[good] < s.depth)
            findings.share("opening brackets", split, opens[free], 0.5, 0.5)
    free_share = 1 / 2 if s.depth > 1 else 0.0
    T = min(s.seq_len, s.test_length)
    findings.duplicates(data, float(2.0 ** -(free_share * T / 2) * s.kinds ** -(T / 2)))


def _nested(x: Ints, s: Dyck) -> tuple[Ints, Bools, Ints]:
    """Follow the stacks of rows (n, length); return targets, wrong tokens, depths before them."""
    n, k = len(x), s.kinds
    rows, stack, depth = np.arange(n), np.zeros((n, s.depth + 1), np.int64), np.zeros(n, np.int64)
    y, bad, depths = np.empty(x.shape, np.int64), np.empty(x.shape, bool), np.empty(x.shape, int)
    for at, token in enumerate(x.T):
        depths[:, at] = depth
        opens = (token >= 0) & (token < k) & (depth < s.depth)
        closes = (depth > 0) & (token == k + stack[rows, depth])
        bad[:, at] = ~(opens | closes)
        depth = depth + opens - closes
        stack[rows[opens], depth[opens]] = token[opens]
        y[:, at] = np.where(depth > 0, k + stack[rows, depth], 2 * k)
    return y, bad, depths


DYCK = TaskType(
    "dyck",
    "Dyck",
    Dyck,
    draw,
    check=check,
    about="the bracket that may close, held beyond the training length",
)
