"""Generated data have the statistics of the published sets, and are the same for the same seed."""

import numpy as np
import pytest

from mlxhog.research.classic.generators import netflix_like, rcv1_like
from tests.research.classic.pair_problems import delta_and_rho
from tests.tolerances import FITTED_STATISTIC, assert_close


@pytest.mark.slow
def test_rcv1_like_has_the_statistics_of_rcv1(text):
    lengths, often = np.diff(text.indptr), text.degrees() / text.n_rows
    longest, marked = int(lengths.argmax()), np.zeros(text.n_features, bool)
    marked[text.indices[text.indptr[longest] : text.indptr[longest + 1]]] = True
    meets_longest = np.logical_or.reduceat(marked[text.indices], text.indptr[:-1])
    for name, statistic, published in (
        ("mean length", lengths.mean(), 79),
        ("median length", np.median(lengths), 66),
        ("omega", lengths.max(), 677),
        ("delta", often.max(), 0.42),
        ("rho", meets_longest.mean(), 0.9995),
        ("sum of q^2", np.square(often).sum(), 4.49),
    ):
        assert_close(statistic, published, FITTED_STATISTIC, label=name)


@pytest.mark.slow
def test_netflix_like_is_as_sparse_as_netflix(netflix):
    assert_close(netflix.n_entries, 1.909e6, FITTED_STATISTIC)
    ends = netflix.users, netflix.n_users + netflix.items
    delta, rho = delta_and_rho(*ends, netflix.n_users + netflix.n_items)
    assert_close(delta, 2.30e-3, FITTED_STATISTIC)
    assert_close(rho, 2.47e-3, FITTED_STATISTIC)


def test_a_smaller_netflix_like_has_fewer_users_and_films_and_equal_seeds_give_equal_data():
    small = netflix_like(20_000, seed=3)
    assert (small.n_users, small.n_items) == (1518, 562)
    assert 14_000 < small.n_entries <= 20_000
    again = netflix_like(20_000, seed=3)
    np.testing.assert_array_equal(small.ratings, again.ratings)
    assert not np.array_equal(small.users[:100], netflix_like(20_000, seed=4).users[:100])
    assert rcv1_like(50, seed=3).values.tolist() == rcv1_like(50, seed=3).values.tolist()
    assert rcv1_like(50, seed=3).values.tolist() != rcv1_like(50, seed=4).values.tolist()
