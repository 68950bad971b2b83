"""Tickets cover an epoch: every sequence once, in the order of the keyed permutation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data import batches as module
from mlxhog.data.batches import Batches, Order
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from tests.pairs import each_of, max_examples


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.bin"
    with TokenWriter(path, ByteTokenizer(), split="train", source="test") as writer:
        writer.add(np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8).tobytes())
    return TokenFile.open(path)


def rows(file, indices):
    result = file.batch(np.array(indices), 10).x.tolist()
    return result


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_the_tickets_of_an_epoch_hold_every_sequence_once_in_order(
    file, batch_size, blocks, monkeypatch
):
    if blocks:  # the path of corpora above 65,536 sequences
        monkeypatch.setattr(module, "TABLE_LIMIT", 10)
        monkeypatch.setattr(module, "_AHEAD", 16)
    source = Batches(file, seq_len=10, batch_size=batch_size, seed=3)
    order = Order(100, file.digest, 3)
    assert source.n_tickets == -(-100 // batch_size)
    for epoch in (0, 1, 0):
        results = [row for t in range(source.n_tickets) for row in source.at(epoch, t).x.tolist()]
        assert results == rows(file, order.at(epoch, 0, 100).tolist())


def test_no_two_sequences_of_a_run_share_what_is_random_about_them(file):
    source = Batches(file, seq_len=10, batch_size=8, seed=0)
    batches = [source.at(epoch, ticket) for epoch in (0, 1) for ticket in range(13)]
    seeds = [batch.part(row, row + 1).seed for batch in batches for row in range(len(batch.x))]
    assert len(set(seeds)) == len(seeds) == 200
    other = Batches(file, seq_len=10, batch_size=8, seed=1)
    assert other.at(0, 0).seed not in seeds


@pytest.mark.parametrize("ticket", [-1, 13])
def test_a_ticket_outside_the_epoch_is_refused(file, ticket):
    with pytest.raises(ValueError, match="not one of the epoch's 13"):
        Batches(file, seq_len=10, batch_size=8, seed=0).at(0, ticket)


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


@max_examples(60)
@given(st.integers(1, 400), st.integers(0, 2**63), st.integers(0, 1000))
def test_every_small_epoch_holds_every_sequence_once(n, seed, epoch):
    order = Order(n, ZEROS, seed).at(epoch, 0, n)
    assert np.array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize(
    "n", [65_535, 65_536, 65_537, 65_599, 131_071, 131_072, 131_073, 1_000_003]
)
def test_every_large_epoch_holds_every_sequence_once(n):
    order = Order(n, "ab" * 32, 3).at(1, 0, n)
    assert np.array_equal(np.sort(order), np.arange(n))


@max_examples(40)
@given(st.sampled_from([1000, 70_001]), st.data())
def test_any_piece_equals_the_same_piece_of_the_whole(n, data):
    start = data.draw(st.integers(0, n))
    count = data.draw(st.integers(0, min(n - start, 500)))
    whole = Order(n, ZEROS, 1).at(4, 0, n)
    assert np.array_equal(Order(n, ZEROS, 1).at(4, start, count), whole[start : start + count])


def test_order_depends_on_corpus_seed_and_epoch_only():
    base = Order(1000, ZEROS, 0)
    first = base.at(0, 0, 1000)
    base.at(1, 0, 1000)
    assert np.array_equal(base.at(0, 0, 1000), first)
    others = [Order(1000, "1" * 64, 0).at(0, 0, 1000), Order(1000, ZEROS, 1).at(0, 0, 1000)]
    assert not any(np.array_equal(first, other) for other in others)
