"""Orders of examples, their shares, claims from the queue, and means of copies."""

from __future__ import annotations

import numpy as np
import pytest

from mlxhog.classic.config import claim_size
from mlxhog.classic.dispatcher import epoch_order, split_range
from mlxhog.classic.session import average_copies


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (9, 3), (3, 3), (7, 1), (2, 5)])
def test_shares_are_contiguous_and_nearly_equal(count, parts):
    shares = split_range(100, count, parts)
    sizes = [size for _, size in shares]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert [start for start, _ in shares] == [100 + sum(sizes[:k]) for k in range(parts)]


def test_a_shuffle_has_every_example_once_and_differs_between_epochs():
    first, second = (epoch_order(1000, 0, epoch, "shuffle") for epoch in (1, 2))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(1000, 0, 1, "shuffle"))


def test_draws_with_replacement_leave_a_share_of_one_over_e_out():
    drawn = epoch_order(10_000, 0, 1, "replacement")
    assert drawn.dtype == np.int32
    assert 0 <= drawn.min() <= drawn.max() < 10_000
    left_out = 1 - len(np.unique(drawn)) / 10_000
    assert abs(left_out - np.exp(-1)) < 0.02  # three standard deviations are .0092


@pytest.mark.parametrize(("batch", "claim"), [(1, 256), (2, 256), (125, 250), (300, 300)])
def test_a_claim_is_whole_mini_batches(batch, claim):
    assert claim_size(batch) == claim


def test_the_mean_of_copies_is_rounded_once():
    copies = [{"x": np.float32([[value]])} for value in (1.0, 1e-8, 2.0)]
    shared = {"x": np.zeros((1, 1), np.float32)}
    average_copies(shared, copies)
    assert shared["x"][0, 0] == np.float32((1.0 + np.float64(np.float32(1e-8)) + 2.0) / 3)
    average_copies(shared, copies[1:2])
    assert shared["x"][0, 0] == np.float32(1e-8)
