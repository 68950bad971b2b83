"""Rows of the embedding under real batches, against a count by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mlxhog.data import prepare
from mlxhog.data.batches import Batches
from mlxhog.data.byte_tokenizer import ByteTokenizer
from mlxhog.theory.analysis.conflicts import HOTTEST, RowStatistics, count_rows, token_name
from tests.tolerances import TWO_DIVISIONS, assert_close
from tests.training.small import small_config


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    data = prepare.prepare(small_config(tmp_path).data)
    return Batches.open(data.train, seq_len=4, batch_size=1, seed=0)


def counted(batches: Batches, numbers: range) -> RowStatistics:
    tickets = [(0, k) for k in numbers]
    return count_rows(batches, tickets, rows=320, tokenizer=ByteTokenizer(), tell=lambda step: None)


def test_every_number_is_that_of_a_count_by_hand(batches: Batches) -> None:
    rows = counted(batches, range(60))
    edges = [set(batches.at(0, k).x.reshape(-1).tolist()) for k in range(60)]
    touches = {token: sum(token in edge for edge in edges) for token in set().union(*edges)}
    meets = [sum(bool(edge & other) for other in edges) for edge in edges]
    pairs = [bool(a & b) for a, b in combinations(edges, 2)]
    assert rows.omega == max(map(len, edges))
    assert rows.mean_rows == np.mean([len(edge) for edge in edges])
    assert rows.delta == max(touches.values()) / 60
    assert rows.rho == max(meets) / 60
    assert_close(rows.p_conf, sum(pairs) / len(pairs), TWO_DIVISIONS)
    assert_close(rows.mean_conflict_degree, sum(meets) / 60 - 1, TWO_DIVISIONS)
    assert rows.never == 320 - len(touches)
    hottest = sorted(touches, key=lambda token: (-touches[token], token))[:HOTTEST]
    assert [token.id for token in rows.hottest] == hottest
    assert [token.share for token in rows.hottest] == [touches[t] / 60 for t in hottest]
    rest = [edge - set(hottest) for edge in edges]
    pairs = [bool(a & b) for a, b in combinations(rest, 2)]
    assert_close(rows.without_hottest, sum(pairs) / len(pairs), TWO_DIVISIONS)
    assert 0 < rows.without_hottest < rows.p_conf < 1


def test_a_whole_epoch_is_told_from_a_part_of_one(batches: Batches) -> None:
    assert counted(batches, range(batches.n_tickets)).whole_epoch
    assert not counted(batches, range(batches.n_tickets - 1)).whole_epoch


def test_tokens_are_named_by_what_they_stand_for() -> None:
    tokenizer = ByteTokenizer()
    assert token_name(tokenizer, 32) == "' '"
    assert token_name(tokenizer, 101) == "'e'"
    assert token_name(tokenizer, 10) == r"'\n'"
    assert token_name(tokenizer, 0xC3) == r"'\\xc3'"
    assert token_name(tokenizer, tokenizer.bos) == "<bos>"
    assert token_name(tokenizer, 300) == "<300>"
