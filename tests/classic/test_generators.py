"""Generated data have the statistics of the published sets, and the recorded draws."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.classic.generators import cifar_dense, linreg5, rcv1_like, svm100
from tests.tolerances import FITTED_STATISTIC, RECORDED_F32, assert_close

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "hogwild"
RECORDED = json.loads((GOLDEN / "classic_reference.json").read_text())


@pytest.fixture(scope="module")
def text():
    return rcv1_like()


def meeting(rows, number: int) -> float:
    """The share of rows that have a feature in common with one of them."""
    marked = np.zeros(rows.n_features, bool)
    marked[rows.row(number)[0]] = True
    return float(np.logical_or.reduceat(marked[rows.indices], rows.indptr[:-1]).mean())


@pytest.mark.parametrize(
    ("statistic", "published"),
    [
        (lambda lengths, rows: lengths.mean(), 79),
        (lambda lengths, rows: np.median(lengths), 66),
        (lambda lengths, rows: lengths.max(), 677),
        (lambda lengths, rows: rows.degrees().max() / rows.n_rows, 0.42),
        (lambda lengths, rows: meeting(rows, int(lengths.argmax())), 0.9995),
        (lambda lengths, rows: np.mean([meeting(rows, row) for row in range(100)]), 0.91),
        (lambda lengths, rows: np.square(rows.degrees() / rows.n_rows).sum(), 4.49),
    ],
    ids=["mean length", "median length", "omega", "delta", "rho", "p_conf", "sum of q^2"],
)
def test_rcv1_like_has_the_statistics_of_rcv1(text, statistic, published):
    value = statistic(np.diff(text.indptr), text)
    assert_close(value, published, FITTED_STATISTIC)


def test_rcv1_like_rows_have_length_one_and_classes_are_balanced(text):
    norms = np.sqrt(np.add.reduceat(text.values.astype(float) ** 2, text.indptr[:-1]))
    assert_close(norms, np.ones(text.n_rows), RECORDED_F32)
    assert abs(text.labels.mean()) < 0.01


def test_rcv1_like_features_are_numbered_by_how_frequent_they_are(text):
    degrees = text.degrees()
    heads = [degrees[start : 2 * start].mean() for start in (64, 256, 1024, 4096, 16384)]
    assert heads == sorted(heads, reverse=True)
    assert degrees.argmax() < 4


def test_svm100_are_the_recorded_draws():
    train, test = svm100()
    recorded = RECORDED["svm100"]
    assert len(train.indices) == recorded["nnz"]
    assert np.diff(train.indptr).max() == recorded["omega"]
    assert train.degrees().max() / train.n_rows == recorded["delta"]
    assert test is not None
    assert test.n_rows == 1_000


def test_svm100_draws_are_those_of_one_call_however_many_rows_there_are():
    n = 20_003  # more than are drawn at once
    rng = np.random.default_rng(5)
    mask = rng.random((n, 100)) < 0.2
    dense = np.where(mask, rng.standard_normal((n, 100)), 0)
    train, test = svm100(n, 0, seed=5)
    assert test is None
    assert np.bincount(train.indices).tolist() == mask.sum(0).tolist()
    np.testing.assert_array_equal(train.values, dense[mask].astype(np.float32))
    plane = rng.standard_normal(100)
    np.testing.assert_array_equal(train.labels, np.where(dense @ plane >= 0, 1, -1))


def test_linreg5_are_the_recorded_draws():
    rows = linreg5()
    x, y = rows.features.astype(float), rows.labels.astype(float)
    best, *_ = np.linalg.lstsq(x, y)
    assert_close(best, RECORDED["linreg5"]["lstsq"], RECORDED_F32)
    assert_close(((x @ best - y) ** 2).mean(), RECORDED["linreg5"]["mse_opt"], RECORDED_F32)


def test_cifar_dense_pixels_are_centred_within_their_range_and_alike_beside_each_other():
    train, test = cifar_dense(2_000, 500)
    assert test is not None
    assert (train.n_features, train.n_classes, test.n_rows) == (3072, 10, 500)
    assert abs(train.features.mean(axis=0)).max() < 1e-3
    assert train.features.max() - train.features.min() <= 1.2
    images = train.features.reshape(-1, 3, 32, 32)
    for a, b in ((images[..., 1:], images[..., :-1]), (images[:, :, 1:], images[:, :, :-1])):
        assert 0.93 < np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.97


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: rcv1_like(500, seed=seed).values,
        lambda seed: svm100(500, seed=seed)[1].values,
        lambda seed: linreg5(50, seed=seed).labels,
        lambda seed: cifar_dense(60, 20, seed=seed)[1].features.ravel(),
    ],
    ids=["rcv1", "svm100", "linreg5", "cifar"],
)
def test_equal_seeds_give_equal_data_and_others_do_not(draw):
    assert draw(3).tolist() == draw(3).tolist()
    assert draw(3).tolist() != draw(4).tolist()
