"""Tickets cover an epoch: every sequence once, in the order of the keyed permutation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlxhog.data import batches as module
from mlxhog.data.batches import Batches, Order
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    path = tmp_path / "train.bin"
    with TokenWriter(path, ByteTokenizer(), split="train", source="test") as writer:
        writer.add(np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8).tobytes())
    return TokenFile.open(path)


def rows(file: TokenFile, indices: list[int]) -> list[list[int]]:
    found: list[list[int]] = file.batch(np.array(indices), 10).x.tolist()
    return found


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_the_tickets_of_an_epoch_hold_every_sequence_once_in_order(
    file: TokenFile, batch_size: int, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks:  # the path of corpora above 65,536 sequences
        monkeypatch.setattr(module, "TABLE_LIMIT", 10)
        monkeypatch.setattr(module, "_AHEAD", 16)
    source = Batches(file, seq_len=10, batch_size=batch_size, seed=3)
    order = Order(100, file.digest, 3)
    assert source.n_tickets == -(-100 // batch_size)
    for epoch in (0, 1, 0):
        found = [row for t in range(source.n_tickets) for row in source.at(epoch, t).x.tolist()]
        assert found == rows(file, order.at(epoch, 0, 100).tolist())


def test_a_ticket_is_the_same_whoever_asks_and_whenever(file: TokenFile) -> None:
    one, other = (Batches(file, seq_len=10, batch_size=8, seed=0) for _ in range(2))
    for ticket in (5, 0, 12, 5):
        assert np.array_equal(
            one.at(1, ticket).x, Batches(file, seq_len=10, batch_size=8, seed=0).at(1, ticket).x
        )
    assert np.array_equal(one.at(0, 3).y, other.at(0, 3).y)


def test_no_two_sequences_of_a_run_share_what_is_random_about_them(file: TokenFile) -> None:
    source = Batches(file, seq_len=10, batch_size=8, seed=0)
    batches = [source.at(epoch, ticket) for epoch in (0, 1) for ticket in range(13)]
    seeds = [batch.part(row, row + 1).seed for batch in batches for row in range(len(batch.x))]
    assert len(set(seeds)) == len(seeds) == 200
    other = Batches(file, seq_len=10, batch_size=8, seed=1)
    assert other.at(0, 0).seed not in seeds


@pytest.mark.parametrize("ticket", [-1, 13])
def test_a_ticket_outside_the_epoch_is_refused(file: TokenFile, ticket: int) -> None:
    with pytest.raises(ValueError, match="not one of the epoch's 13"):
        Batches(file, seq_len=10, batch_size=8, seed=0).at(0, ticket)
