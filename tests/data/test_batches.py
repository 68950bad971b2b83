"""Tickets cover an epoch: every sequence once, in the order of the keyed permutation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data import batches as module
from mlxhog.data.batches import Batches, Order
from tests.data.token_files import token_file
from tests.pairs import each_of, max_examples


@pytest.fixture
def file(tmp_path):
    text = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8).tobytes()
    return token_file(tmp_path, [text])


@each_of("limit", [module.TABLE_LIMIT, 10])  # of corpora, and of those above 65,536 sequences
@each_of("batch_size", [1, 7, 100, 1000])
def test_the_tickets_of_an_epoch_hold_every_sequence_once_in_order(file, batch_size, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TABLE_LIMIT", limit)
        source = Batches(file, seq_len=10, batch_size=batch_size, seed=3)
        order = Order(100, file.digest, 3)
        assert source.n_tickets == -(-100 // batch_size)
        for epoch in (0, 1, 0):
            rows = [row for t in range(source.n_tickets) for row in source.at(epoch, t).x.tolist()]
            assert rows == file.batch(order.at(epoch, 0, 100), 10).x.tolist()


def test_no_two_sequences_of_a_run_share_what_is_random_about_them(file):
    source = Batches(file, seq_len=10, batch_size=8, seed=0)
    batches = [source.at(epoch, ticket) for epoch in (0, 1) for ticket in range(13)]
    seeds = [batch.part(row, row + 1).seed for batch in batches for row in range(len(batch.x))]
    assert len(set(seeds)) == len(seeds) == 200
    other = Batches(file, seq_len=10, batch_size=8, seed=1)
    assert other.at(0, 0).seed not in seeds


# -- the order of an epoch -------------------------------------------------------------------------


ZEROS = "0" * 64


@each_of(
    ("n", "seed", "epoch", "expected"),
    [
        (10, 0, 0, [5, 1, 2, 6, 3, 0, 9, 7, 8, 4]),
        (10, 0, 1, [8, 7, 4, 6, 3, 2, 1, 5, 0, 9]),
        (1_000_003, 0, 0, [767920, 428890, 602688, 116877, 178414, 150880]),
        (1_000_003, 7, 2, [510957, 352135, 345588, 935015, 14665, 993767]),
    ],
)
def test_the_order_has_its_recorded_values(n, seed, epoch, expected):
    assert Order(n, ZEROS, seed).at(epoch, 0, len(expected)).tolist() == expected
    assert Order(n, "1" * 64, seed).at(epoch, 0, len(expected)).tolist() != expected


@max_examples(60)
@given(st.integers(1, 400), st.integers(0, 2**63), st.integers(0, 1000))
def test_every_small_epoch_holds_every_sequence_once(n, seed, epoch):
    order = Order(n, ZEROS, seed).at(epoch, 0, n)
    assert np.array_equal(np.sort(order), np.arange(n))


@each_of("n", [65_536, 65_537, 131_072, 131_073, 1_000_003])
def test_every_large_epoch_holds_every_sequence_once_and_any_piece_is_that_of_the_whole(n):
    whole = Order(n, "ab" * 32, 3).at(1, 0, n)
    assert np.array_equal(np.sort(whole), np.arange(n))
    for start, count in ((0, 3), (n // 3, 500), (n - 1, 1)):
        piece = Order(n, "ab" * 32, 3).at(1, start, count)
        assert np.array_equal(piece, whole[start : start + count])
