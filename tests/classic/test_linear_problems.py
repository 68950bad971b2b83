"""The linear problems reach what was recorded, alone and with many workers, and read real files."""

import numpy as np
import pytest

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problem import ProblemMemory
from mlxhog.classic.problems import create, linear
from mlxhog.classic.run import train
from mlxhog.errors import DataError
from mlxhog.theory.hypergraph import Hypergraph
from tests.classic.native import alone
from tests.tolerances import LOSS_OF_OTHER_DRAWS, assert_close


def sequential(problem, epochs, lr, decay, batch, order_seed=1):
    """Yield the measures after each epoch of plain SGD, with the order of the recorded runs."""
    params = problem.initial(0)
    native = problem.kernel(ProblemMemory(params, problem.data(), {}))
    alone_in_memory = alone("private", len(params["x"]))
    rng = np.random.default_rng(order_seed)
    for epoch in range(epochs):
        order = rng.permutation(problem.n_examples).astype(np.int32)
        native.run(alone_in_memory, order, lr * decay**epoch, batch)
        yield problem.measures(params)


@pytest.mark.slow
def test_the_svm_reaches_the_losses_of_the_recorded_run(text, monkeypatch):
    """Those of the recorded run, whose rows were drawn from the same law in another order."""
    made = {(linear.TEXT_ROWS, 0): text}
    monkeypatch.setattr(linear, "rcv1_like", lambda n, *, seed: made[n, seed])
    problem = create("svm", ClassicConfig())
    *_, measures = sequential(problem, 10, lr=0.5, decay=0.8, batch=1)
    recorded = {
        "train_loss": 0.2971,
        "train_error": 0.0796,
        "test_loss": 0.5689,
        "test_error": 0.2233,
    }
    for name, expected in recorded.items():
        assert_close(measures[name], expected, LOSS_OF_OTHER_DRAWS, label=name)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Real images of digits as svmlight text, labels 0 (odd) and 2 (even): train and test files."""
    from sklearn.datasets import dump_svmlight_file, load_digits

    data = load_digits()
    folder, labels = tmp_path_factory.mktemp("digits"), np.where(data.target % 2 == 0, 2, 0)
    for name, rows in (("train.svm", slice(0, 1400)), ("test.svm", slice(1400, None))):
        x, y = data.data[rows] / 16, labels[rows]
        dump_svmlight_file(x, y, str(folder / name), zero_based=False)
    return folder


@pytest.mark.parametrize("name", ["svm", "logistic", "least-squares"])
def test_real_rows_are_learned_from_a_file(digits, name):
    config = ClassicConfig(
        data=str(digits / "train.svm"),
        test_data=str(digits / "test.svm"),
        labels="0=-1,2=+1",
        lr=0.02,
        workers=2,
    )
    problem = create(name, config)
    assert (problem.n_examples, problem.test.n_rows) == (1400, 397)
    result = train(problem, config)
    assert result.measures["train_error"] < 0.15
    assert result.measures["test_error"] < 0.2


def test_a_fifth_is_held_out_of_a_file_without_test_data(digits):
    config = ClassicConfig(data=str(digits / "train.svm"), labels="0=-1,2=+1")
    problem = create("svm", config)
    assert (problem.train.n_rows, problem.test.n_rows) == (1120, 280)
    again = create("svm", config)
    assert problem.test.values.tolist() == again.test.values.tolist()


def test_numbers_as_labels_are_for_least_squares_only(tmp_path):
    path = tmp_path / "rows.svm"
    path.write_text("0.5 1:1\n7 1:2\n-3 2:1\n")
    problem = create("least-squares", ClassicConfig(data=str(path)))
    assert "train_error" not in problem.measures(problem.initial(0))
    with pytest.raises(DataError, match=":1: '0.5 1:1'; wanted -1 or"):
        create("svm", ClassicConfig(data=str(path)))


@pytest.mark.parametrize(
    ("name", "size"), [("svm", 50), ("matrix-completion", 500), ("graph-cuts", 5)]
)
def test_a_problem_says_what_each_example_touches(name, size):
    problem = create(name, ClassicConfig(size=size))
    graph = Hypergraph(*problem.supports())
    assert len(graph) == problem.n_examples
    assert graph.n <= sum(block.size for block in problem.initial(0).values())
