"""The targets and negatives of sampled softmax."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.data.batch import IGNORED
from mlxhog.models.sampled_softmax import SampledSoftmax, inclusion, systematic

COUNTS = np.array([100, 0, 7, 2000, 1, 30, 30, 500, 3, 12])
LABELS = np.array([[3, 7, IGNORED], [3, 0, 7]], np.int32)


@given(
    st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40),
    st.integers(0, 50),
    st.floats(0, 1, exclude_max=True),
)
def test_probabilities_follow_the_weights_and_n_different_tokens_are_sampled(weights, n, start):
    w = np.array(weights)
    share = inclusion(w, n)
    assert ((share >= 0) & (share <= 1)).all()
    np.testing.assert_allclose(share.sum(), min(n, len(w)), rtol=1e-9, atol=1e-9)
    below = share < 1
    if below.any() and n:
        np.testing.assert_allclose(share[below] / w[below], (share[below] / w[below])[0])
        assert (w[~below] >= w[below].max()).all()
    chosen = systematic(share, start)
    assert len(chosen) == len(np.unique(chosen)) == min(n, len(weights))


@pytest.mark.slow
def test_negatives_are_sampled_as_often_as_their_probability_says():
    head, draws = SampledSoftmax.of_counts(4, COUNTS), 4000
    counts, stated = np.zeros(10), np.zeros(10)
    for seed in range(draws):
        result = head.draw(LABELS, seed)
        counts[result.ids] += 1
        stated[result.ids] = np.exp(result.log_inclusion)
    assert (stated[[0, 3, 7]] == 1).all()  # the targets
    error = np.sqrt(stated * (1 - stated) / draws)
    assert (np.abs(counts / draws - stated) <= 4.5 * error).all()


def test_candidates_are_targets_and_negatives_and_labels_are_their_indices():
    result = SampledSoftmax.of_counts(4, COUNTS).draw(LABELS, seed=5)
    assert result.count == len(result.ids) == 7
    assert (np.diff(result.ids) > 0).all()
    counted = LABELS >= 0
    np.testing.assert_array_equal(result.ids[result.labels[counted]], LABELS[counted])
    np.testing.assert_array_equal(result.labels[~counted], LABELS[~counted])
    assert (result.log_inclusion[np.isin(result.ids, LABELS)] == 0).all()
    for n in (7, 50):  # then every token is a candidate
        result = SampledSoftmax.of_counts(n, COUNTS).draw(LABELS, seed=0)
        assert result.ids.tolist() == list(range(10))
        assert not result.log_inclusion.any()
    result = SampledSoftmax.of_counts(4, COUNTS).draw(np.full((1, 3), IGNORED, np.int32), seed=0)
    assert result.count == 4
    assert (result.labels == IGNORED).all()
