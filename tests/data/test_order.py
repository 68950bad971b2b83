"""The order of an epoch is a fixed, keyed permutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxhog.data.batches import Order

ZEROS = "0" * 64


@pytest.mark.parametrize(
    ("n", "seed", "epoch", "expected"),
    [
        (10, 0, 0, [5, 1, 2, 6, 3, 0, 9, 7, 8, 4]),
        (10, 0, 1, [8, 7, 4, 6, 3, 2, 1, 5, 0, 9]),
        (1_000_003, 0, 0, [767920, 428890, 602688, 116877, 178414, 150880]),
        (1_000_003, 7, 2, [510957, 352135, 345588, 935015, 14665, 993767]),
    ],
)
def test_the_order_has_its_recorded_values(
    n: int, seed: int, epoch: int, expected: list[int]
) -> None:
    assert Order(n, ZEROS, seed).at(epoch, 0, len(expected)).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(0, 2**63), st.integers(0, 1000))
def test_every_small_epoch_holds_every_sequence_once(n: int, seed: int, epoch: int) -> None:
    order = Order(n, ZEROS, seed).at(epoch, 0, n)
    assert np.array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize(
    "n", [65_535, 65_536, 65_537, 65_599, 131_071, 131_072, 131_073, 1_000_003]
)
def test_every_large_epoch_holds_every_sequence_once(n: int) -> None:
    order = Order(n, "ab" * 32, 3).at(1, 0, n)
    assert np.array_equal(np.sort(order), np.arange(n))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1000, 70_001]), st.data())
def test_any_piece_equals_the_same_piece_of_the_whole(n: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n))
    count = data.draw(st.integers(0, min(n - start, 500)))
    whole = Order(n, ZEROS, 1).at(4, 0, n)
    assert np.array_equal(Order(n, ZEROS, 1).at(4, start, count), whole[start : start + count])


def test_order_depends_on_corpus_seed_and_epoch_only() -> None:
    base = Order(1000, ZEROS, 0)
    first = base.at(0, 0, 1000)
    base.at(1, 0, 1000)
    assert np.array_equal(base.at(0, 0, 1000), first)
    others = [Order(1000, "1" * 64, 0).at(0, 0, 1000), Order(1000, ZEROS, 1).at(0, 0, 1000)]
    assert not any(np.array_equal(first, other) for other in others)


def test_all_orders_of_four_are_about_equally_likely() -> None:
    seeds = 4_800
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(seeds):
        order = tuple(Order(4, ZEROS, seed).at(0, 0, 4).tolist())
        counts[order] = counts.get(order, 0) + 1
    expected = seeds / 24
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == 24
    assert chi2 < 49.7  # 0.999 quantile at 23 degrees of freedom; the seeds are fixed


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (9, 2), (0, 11), (5, -1)])
def test_a_range_outside_the_epoch_is_refused(start: int, count: int) -> None:
    with pytest.raises(ValueError, match="leave the epoch of 10"):
        Order(10, ZEROS, 0).at(0, start, count)
