"""Tolerances grow where rounding the inputs is enough to move a result."""

from functools import partial

import numpy as np

from mlxhog.parity import compare, tolerances
from mlxhog.parity.engines import NumPyEngine
from tests.models.sample import batch, config, perturbed_params


def sums(inputs):
    """A sum that cancels, and one that does not."""
    a, b = inputs["a"].astype(np.float64), inputs["b"].astype(np.float64)
    yield "grad/cancels", a - b
    yield "grad/adds", a + b


def test_what_cancels_moves_and_what_adds_up_does_not():
    inputs = {"a": np.full(9, 1.0, np.float32), "b": np.full(9, 0.9999, np.float32)}
    results, conditions = tolerances.split(
        dict(tolerances.measure(dict(sums(inputs)), inputs, sums))
    )
    assert not results
    assert conditions["grad/adds"] < 1e-7
    assert 1e-4 < conditions["grad/cancels"] < 1e-2


def test_inputs_are_rounded_by_at_most_half_a_unit():
    x = np.random.default_rng(0).normal(size=1000)
    moved = tolerances.rounded({"x": x}, 1)["x"]
    assert 0 < np.abs(moved / x - 1).max() <= 2.0**-24 * 1.001


def test_a_maximum_whose_sides_nearly_change_places_moves():
    def steep(inputs):
        yield "grad/kink", np.where(inputs["a"] > 1.0 + 6 * tolerances.ROUNDING, 2.0, 1.0)

    inputs = {"a": np.full(50, 1.0, np.float32)}
    _, conditions = tolerances.split(dict(tolerances.measure(dict(steep(inputs)), inputs, steep)))
    assert conditions == {"grad/kink": 1.0 / 16.0}


def test_of_a_parameter_after_steps_its_way_counts_and_not_where_it_began():
    def stays(inputs):
        yield "after/sgd/w", inputs["w"].astype(np.float64) + 0.25

    inputs = {"w": np.full(50, 1000.0, np.float32)}
    _, conditions = tolerances.split(dict(tolerances.measure(dict(stays(inputs)), inputs, stays)))
    assert conditions["after/sgd/w"] < 1e-12


def test_a_difference_is_allowed_as_far_as_rounding_moves_the_result():
    expected = {"logits": np.array([5.0])}
    for conditions, ok in (({}, False), ({"logits": 1e-5}, True)):
        for name in ("logits", "stepwise/logits"):
            (row,) = compare.tensor_rows(
                "a", {name: np.array([5.001])}, "b", expected, precision="float32", start={},
                conditions=conditions, pairs=[(name, "logits")],
            )  # fmt: skip
            assert row.ok is ok
    (row,) = compare.tensor_rows(
        "a", {"logits": np.array([5.001])}, "b", expected, precision="float64", start={},
        conditions={"logits": 1e-5}, pairs=[("logits", "logits")],
    )  # fmt: skip
    assert not row.ok


def test_a_result_without_a_condition_of_its_own_has_that_of_what_it_stands_for():
    conditions = {"grad/w": 1.0, "logits": 3.0, "state/n": 4.0}
    results = {
        "after/adamw/w": 1.0,
        "stepwise/logits": 3.0,
        "stepwise/state/n": 4.0,
        "hidden/0": None,
    }
    assert {name: tolerances.condition_of(name, conditions) for name in results} == results


def test_noise_shows_what_float32_loses_where_no_rounding_of_the_inputs_does():
    cfg = config(num_hidden_layers=1)
    tokens, targets = batch(cfg, 1, 2, seed=2)
    params = perturbed_params(cfg, 2)

    def gradients(engine, at):
        engine.load(cfg, at)
        return engine.differentiate(tokens, targets)[1]

    exact, rounding = (partial(gradients, NumPyEngine(rounded=r)) for r in (False, True))
    grads, (_, noise) = (
        exact(params),
        tolerances.split(dict(tolerances.measure_noise(params, exact, rounding))),
    )
    largest = max(float(np.abs(grad).max()) for grad in grads.values())
    assert set(noise) == {f"noise/grad/{name}" for name in grads}
    for name, off in noise.items():
        assert off < 16 * tolerances.ROUNDING * largest, name
    keys = "backbone.blocks.0.mlstm_layer.k.weight"  # behind the head norm: of 2e-4 of the largest
    assert noise[f"noise/grad/{keys}"] > 1e-5 * np.abs(grads[keys]).max()


def test_a_small_gradient_is_measured_by_its_own_noise_between_backends_that_have_it():
    expected = {"grad/large": np.array([1.0]), "grad/small": np.array([1e-4])}
    conditions = {name: 1e-8 for name in expected} | {f"noise/{name}": 1e-8 for name in expected}
    for off, noise, ok in ((1e-6, False, True), (1e-6, True, False), (1e-7, True, True)):
        results = {"grad/large": np.array([1.0]), "grad/small": np.array([1e-4 + off])}
        rows = compare.tensor_rows(
            "a", results, "b", expected, precision="float32", start={}, conditions=conditions,
            pairs=[(name, name) for name in expected], noise=noise,
        )  # fmt: skip
        assert [row.ok for row in rows] == [True, ok]
