"""The dense problems of document 004 are the recorded ones, alone and with many workers."""

import json
from pathlib import Path

import numpy as np
from classic import dense

from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.run import train
from mlxhog.research.hypergraph import Hypergraph
from tests.research.classic.test_problems import sequential
from tests.tolerances import RECORDED_F32, SGD_TRACE_F32, assert_close

GOLDEN = Path(__file__).parents[1] / "golden/hogwild/classic_reference.json"
RECORDED = json.loads(GOLDEN.read_text())


def test_the_synthetic_svm_has_the_recorded_rows_and_follows_the_recorded_trace():
    recorded, problem = RECORDED["svm100"], dense.synthetic_svm()
    rows = problem.train
    assert (len(rows.indices), problem.test.n_rows) == (recorded["nnz"], 1_000)
    graph = Hypergraph.of_lists(np.split(rows.indices, rows.indptr[1:-1]), rows.n_features)
    for name in ("omega", "delta", "rho", "p_conf"):
        assert getattr(graph, name) == recorded[name]
    trace = list(sequential(problem, 200, recorded["lr"], recorded["decay"], recorded["batch"]))
    for epoch, expected in recorded["trace"].items():
        measures = trace[int(epoch) - 1]
        assert_close(measures["train_loss"], expected["hinge"], SGD_TRACE_F32, label=epoch)
        assert_close(measures["train_error"], expected["err"], SGD_TRACE_F32, label=epoch)


def test_linear_regression_has_the_recorded_optimum_and_two_workers_find_it():
    problem = dense.linear_regression()
    assert_close(problem.optimum, RECORDED["linreg5"]["lstsq"], RECORDED_F32)
    for write in dense.WRITES:
        result = train(problem, ClassicConfig(workers=2, write=write))
        assert result.measures["distance"] < 0.02  # serial: .0048


def test_images_are_the_recorded_ones_and_their_steps_those_of_numpy():
    problem = dense.image_svm()
    assert_close(
        problem.train.features[0, :3], [-0.0989496112, -0.0227106214, -0.0267659724], RECORDED_F32
    )
    x, y = problem.train.features.astype(np.float64), problem.train.labels.astype(int)
    signs, w = np.where(y[:, None] == np.arange(10), 1.0, -1.0), np.zeros((10, 3072))
    rng, lr = np.random.default_rng(1), 0.002
    for measures in sequential(problem, 1, lr, 1.0, 2):
        for two in rng.permutation(len(x)).reshape(-1, 2):
            slopes = np.where(signs[two] * (x[two] @ w.T) < 1, -signs[two], 0.0)
            w -= lr * slopes.T @ x[two] / len(two)
        loss = np.maximum(0, 1 - signs * (x @ w.T)).sum() / len(x)
        assert_close(measures["train_loss"], loss, SGD_TRACE_F32)


def test_every_dense_example_touches_everything():
    for problem, touched in ((dense.linear_regression(50), 5), (dense.image_svm(50), 30)):
        indptr, indices, n = problem.supports()
        graph = Hypergraph.of_lists(np.split(indices, indptr[1:-1]), n)
        sizes = (graph.omega, n, graph.delta, graph.rho, graph.p_conf)
        assert sizes == (touched, touched, 1, 1, 1)
