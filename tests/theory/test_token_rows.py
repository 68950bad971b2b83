"""Embedding rows under a token distribution: formulas against drawn batches."""

from __future__ import annotations

import numpy as np
import pytest

from mlxhog.errors import DataError
from mlxhog.theory.hypergraph import Hypergraph
from mlxhog.theory.token_rows import TokenRows

ZIPF = 1 / np.arange(1, 401)
ZIPF /= ZIPF.sum()


def batches(p: np.ndarray, tokens: int, count: int = 4000) -> Hypergraph:
    rng = np.random.default_rng(0)
    return Hypergraph.from_lists(rng.choice(len(p), (count, tokens), p=p), len(p))


def test_the_shares_of_the_rows_are_those_of_drawn_batches() -> None:
    rows, drawn = TokenRows(ZIPF, 8), batches(ZIPF, 8)
    error = np.sqrt(rows.q * (1 - rows.q) / len(drawn))
    assert (abs(drawn.degrees / len(drawn) - rows.q) < 5 * error + 1e-3).all()
    assert rows.delta == pytest.approx(drawn.delta, abs=0.04)
    assert rows.mean_size == pytest.approx(drawn.sizes.mean(), rel=0.01)
    assert rows.omega == drawn.omega == 8


def test_conflict_of_rare_rows_is_that_of_drawn_batches() -> None:
    flat = np.full(5000, 1 / 5000)
    rows, drawn = TokenRows(flat, 20), batches(flat, 20)
    assert rows.p_conf == pytest.approx(drawn.p_conf, rel=0.03)
    assert drawn.p_conf <= rows.p_conf_upper_bound


def test_the_most_that_may_conflict_bounds_what_does() -> None:
    for tokens in (1, 2, 5):
        rows, drawn = TokenRows(ZIPF, tokens), batches(ZIPF, tokens)
        assert drawn.p_conf <= rows.p_conf_upper_bound + 0.01
        assert rows.p_conf >= 1 - np.exp(-rows.mean_overlap)


def test_a_batch_of_one_token_is_an_exact_case() -> None:
    rows = TokenRows(ZIPF, 1)
    assert rows.q == pytest.approx(ZIPF)
    assert rows.mean_overlap == pytest.approx((ZIPF**2).sum())  # P(both draw the same token)


def test_counts_of_a_text_are_its_distribution() -> None:
    rows = TokenRows.from_counts(np.array([3, 0, 1]), 2)
    assert rows.q == pytest.approx([1 - 1 / 16, 0, 1 - 9 / 16])
    assert rows.omega == 2


def test_a_text_of_one_token_puts_its_row_into_every_batch() -> None:
    rows = TokenRows.from_counts(np.array([7, 0]), 4)
    assert (rows.delta, rows.p_conf, rows.mean_size) == (1.0, 1.0, 1.0)


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(DataError, match="sum to 0.9"):
        TokenRows(np.array([0.5, 0.4]), 1)
    with pytest.raises(DataError, match="smallest is -0.5"):
        TokenRows(np.array([1.5, -0.5]), 1)
    with pytest.raises(DataError, match="0 tokens touch no row"):
        TokenRows(np.array([1.0]), 0)
    with pytest.raises(DataError, match="no token was counted"):
        TokenRows.from_counts(np.zeros(3, np.int64), 1)
