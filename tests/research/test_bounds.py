"""The theorems as numbers, and whether they apply."""

import json
import math
from pathlib import Path

import pytest

from mlxhog.research.bounds import ASSUMPTIONS, apply
from tests.pairs import each_of

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/hogwild/tiny_hypergraph.json").read_text())
CONVEX = dict.fromkeys(ASSUMPTIONS, True)
DENSE_NETWORK = {**CONVEX, "strongly_convex": False, "sgd": False, "sparse": False}
GRAPH_A = {"omega": 3, "rho": 0.5, "delta": 0.5}


@pytest.mark.parametrize(("tau", "gamma", "k"), GOLDEN["bound"]["rows"])
def test_the_penalty_is_the_ratio_of_the_recorded_updates_to_those_of_serial(tau, gamma, k):
    (_, _, serial), *_ = GOLDEN["bound"]["rows"]
    bound = apply("proposition 4.1", CONVEX, tau=tau, **GRAPH_A)["values"]["penalty"]
    assert k / serial == pytest.approx(bound, rel=1e-4)


N = 10**8
NETFLIX = {"omega": 20, "rho": 2.5e-3, "delta": 2.3e-3}


@each_of(
    ("name", "facts", "inputs", "values", "applies"),
    [
        ("proposition 4.1", CONVEX, {"tau": 0, **GRAPH_A}, {"penalty": 1}, True),
        ("proposition 4.1", CONVEX, {"tau": 1, **NETFLIX}, {"penalty": 6.8}, True),
        ("proposition 4.1", CONVEX, {"tau": 9, **NETFLIX}, {"penalty": 467}, True),
        ("proposition 4.1", DENSE_NETWORK, {"tau": 1, "omega": 1000, "rho": 1, "delta": 1},
         {"penalty": 7 + 6 * 1000}, False),
        ("n^(1/4)", CONVEX, {"n": N, "rho": 20 / N, "delta": 10 / N, "tau": 9},
         {"largest_tau": 100, "holds": 1}, True),
        ("n^(1/4)", CONVEX, {"n": N, "rho": 2.5e-3, "delta": 2.3e-3, "tau": 9}, {}, False),
        ("perturbed iterate", CONVEX, {"n_examples": 10_001, "mean_degree": 200, "tau": 24},
         {"largest_tau": 25, "holds": 1}, True),
        ("perturbed iterate", CONVEX, {"n_examples": 10, "mean_degree": 0, "tau": 1e6},
         {"largest_tau": math.inf, "holds": 1}, True),
        ("perturbed iterate", DENSE_NETWORK, {"n_examples": 1000, "mean_degree": 999, "tau": 1},
         {"largest_tau": 0.5, "holds": 0}, False),
        ("proposition 4.1", CONVEX | {"smooth": None}, {"tau": 1, **GRAPH_A}, {}, None),
        ("proposition 4.1", {"lossless": False}, {"tau": 1, **GRAPH_A}, {}, False),
    ],
)  # fmt: skip
def test_a_theorem_has_its_numbers_and_applies_where_its_assumptions_hold(
    name, facts, inputs, values, applies
):
    bound = apply(name, facts, **inputs)
    for key, value in values.items():
        assert bound["values"][key] == pytest.approx(value, rel=5e-3), key
    assert bound["applies"] is applies
    failing = [one["why"] for one in bound["assumptions"] if one["holds"] is False]
    assert any("neural networks" in why for why in failing) == (facts is DENSE_NETWORK)
