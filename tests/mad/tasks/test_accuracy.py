"""Accuracies equal their definition and another package's; best and majority ones the spec's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlxhog.errors import DataError
from mlxhog.mad.tasks import IGNORED, Dataset, make_task
from mlxhog.mad.tasks.dataset import (
    acc_by_length,
    acc_macro,
    acc_token,
    best_achievable,
    generalization_length,
)
from tests.pairs import max_examples


def long_rows(train, test):
    short, long = (np.zeros((2, length), np.int32) for length in (train, test))
    return Dataset(train_x=short, train_y=short, test_x=long, test_y=long, meta={})


def test_accuracy_by_length_is_that_of_the_positions_since_the_end_before():
    data = long_rows(40, 300)
    assert data.lengths == (40, 64, 128, 256, 300)
    predictions = np.zeros((2, 300), int)
    predictions[1, 50:70] = 1
    by_length = acc_by_length(data, predictions)
    assert by_length == ((40, 1.0), (64, 34 / 48), (128, 122 / 128), (256, 1.0), (300, 1.0))
    assert generalization_length(by_length) == 40
    assert generalization_length(((40, 0.98), (64, 1.0))) == 0
    assert (long_rows(16, 64).lengths, long_rows(16, 16).lengths) == ((16, 32, 64), ())


@max_examples(30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 20), st.integers(1, 200))
def test_both_accuracies_equal_those_of_torchmetrics(seed, classes, n):
    from torchmetrics.classification import MulticlassAccuracy  # for seconds, so not to collect

    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, (2, n))
    targets[rng.random((2, n)) < 0.3] = IGNORED
    targets[0, 0] = 0
    predictions = rng.integers(0, classes, (2, n))
    for average, ours in (("macro", acc_macro), ("micro", acc_token)):
        theirs = MulticlassAccuracy(classes, average=average, ignore_index=IGNORED)
        value = theirs(torch.from_numpy(predictions), torch.from_numpy(targets)).item()
        assert ours(targets, predictions) == pytest.approx(value, abs=1e-6)


def test_targets_that_are_all_ignored_are_refused():
    with pytest.raises(DataError, match="no position is scored"):
        acc_macro(np.full(2, IGNORED), np.zeros(2, int))


@pytest.mark.parametrize(
    ("vocab", "share"), [(1024, 1.0), (2048, 0.982), (4096, 0.865), (8192, 0.632)]
)
def test_the_best_of_memorization_is_the_share_of_keys_that_training_shows(vocab, share):
    data = make_task("M", vocab=vocab)
    assert best_achievable(data) == pytest.approx(share, abs=0.02)
    known = dict(zip(data.train_x[:, ::2].ravel(), data.train_y[:, 1::2].ravel(), strict=True))
    best = np.full_like(data.test_y, IGNORED)
    best[:, 1::2] = np.vectorize(lambda key: known.get(key, 0))(data.test_x[:, ::2])
    assert acc_token(data.test_y, best) == best_achievable(data)
