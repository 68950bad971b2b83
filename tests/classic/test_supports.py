"""What the examples of each problem touch is a hypergraph, as the theory takes it."""

import pytest

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.problems import PROBLEMS, create
from mlxhog.theory.hypergraph import Hypergraph

SIZES = {"matrix-completion": 500, "graph-cuts": 5}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_says_what_each_example_touches(name):
    problem = create(name, ClassicConfig(size=SIZES.get(name, 50)))
    graph = Hypergraph(*problem.supports())
    assert len(graph) == problem.n_examples
    floats = sum(block.size for block in problem.initial(0).values())
    assert graph.n <= floats


@pytest.mark.parametrize(
    ("name", "touched"),
    [("linear-regression", 5), ("image-svm", 30)],  # 30: rows of 1024 pixels, 3 for each class
)
def test_dense_problems_touch_everything_in_every_example(name, touched):
    problem = create(name, ClassicConfig(size=50))
    graph = Hypergraph(*problem.supports())
    assert (graph.omega, graph.n, graph.delta, graph.rho, graph.p_conf) == (
        touched,
        touched,
        1,
        1,
        1,
    )
