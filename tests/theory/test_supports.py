"""Supports as bitmaps: the same sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog import _native
from mlxhog.errors import ShapeError
from mlxhog.theory.supports import Supports

N = 43
sets = st.lists(st.sets(st.integers(0, N - 1)), max_size=12)


@given(sets)
def test_supports_keep_their_coordinates(samples: list[set[int]]) -> None:
    supports = Supports.from_lists([list(sample) for sample in samples], N)
    assert [row.tolist() for row in supports.lists()] == [sorted(sample) for sample in samples]
    assert supports.sizes().tolist() == [len(sample) for sample in samples]
    assert supports.counts.tolist() == [sum(v in sample for sample in samples) for v in range(N)]


@given(sets, sets)
def test_meetings_are_those_of_the_sets(samples: list[set[int]], others: list[set[int]]) -> None:
    found = Supports.from_lists(map(list, samples), N).meetings(
        Supports.from_lists(map(list, others), N)
    )
    assert found.tolist() == [sum(bool(a & b) for b in others) for a in samples]


def test_meetings_are_found_wherever_they_are() -> None:
    n = 100_003
    one = Supports.from_lists([[n - 1], [5_000]], n)
    assert one.meetings(Supports.from_lists([[0, n - 1], [n - 2]], n)).tolist() == [1, 0]


def test_masks_of_any_shape_become_supports() -> None:
    gradient = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, -3.0]])
    supports = Supports.from_masks((g != 0 for g in [gradient, 0 * gradient]), 6)
    assert [row.tolist() for row in supports.lists()] == [[1, 3, 5], []]


def test_samples_are_picked_by_number() -> None:
    supports = Supports.from_lists([[0], [1], [2]], 3)
    assert [row.tolist() for row in supports[np.array([2, 0])].lists()] == [[2], [0]]


def test_supports_that_are_none_are_refused() -> None:
    with pytest.raises(ShapeError, match="coordinates from 0 to 9, wanted 0 to 8"):
        Supports.from_lists([[0, 9]], 9)
    with pytest.raises(ShapeError, match="mask 0 has 4 elements, wanted 9"):
        Supports.from_masks([np.ones(4, bool)], 9)
    with pytest.raises(ShapeError, match="coordinate 9 or above"):
        Supports(np.array([[0, 2]], np.uint8), 9)
    with pytest.raises(ShapeError, match=r"wanted \(samples, 2\) uint8"):
        Supports(np.zeros((1, 3), np.uint8), 9)
    with pytest.raises(ShapeError, match="do not meet"):
        Supports.from_lists([[0]], 9).meetings(Supports.from_lists([[0]], 10))
    with pytest.raises(ValueError, match="one width"):
        _native.bitmap_meetings(
            np.zeros((1, 3), np.uint8), np.zeros((1, 2), np.uint8), np.zeros(1, np.int64)
        )
