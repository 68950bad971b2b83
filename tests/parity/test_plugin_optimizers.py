"""An optimizer of a plugin is compared with float64, and one that breaks a promise is found."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from mlxhog.conformance import optimizers, tolerances
from mlxhog.errors import ConfigError
from mlxhog.optim.rule import parameter
from tests.models.sample import config, perturbed_params
from tests.own_plugins import mlxhog
from tests.parity.test_run import one_gradient
from tests.training.small import small_config
from tests.words import changed

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_optimizer.py"


@pytest.fixture
def own():
    """The class of the example, fresh."""
    return runpy.run_path(str(EXAMPLE))["MyOptimizer"]


def worst(choice):
    """How far a parameter is from the formula after three steps, in roundings per step."""
    steps = optimizers.native_steps(
        config(), perturbed_params(config(), 1), lambda _, step: one_gradient(step), 3, [choice]
    )
    *_, (rule, after, deviation) = steps
    assert (rule, after) == ("my_optimizer", {})
    return max(float(off[0]) for off in deviation.values())


def formula(half):
    def reference(own, w, g, m, *, lr, decay, count):
        m = own.beta * m + (1.0 - own.beta) * g
        return -lr * (m / (abs(m) + half) + decay * own.weight_decay * w), m

    return reference


def test_the_example_takes_the_steps_of_float64_and_a_reference_takes_the_place_of_its_update(own):
    assert worst(own()) < tolerances.PLUGIN_STEP / 4
    for half, ok in ((1e-3, True), (1.01e-3, False)):
        own.reference = formula(half)
        assert (worst(own()) <= tolerances.PLUGIN_STEP) is ok


def add(target, slot, delta):
    flat = target.flat if target.pending is None else target.pending
    parameter(flat, slot)[...] += delta


def ignores_grad_scale(own, target, pairs, step):
    for slot, grad in pairs:
        add(target, slot, np.float32(-step.lr) * grad)


def writes_the_parameters_itself(own, target, pairs, step):
    for slot, grad in pairs:
        parameter(target.flat, slot)[...] -= np.float32(step.lr * step.grad_scale) * grad


def keeps_its_state_outside_of_the_arena(own, target, pairs, step):
    for slot, grad in pairs:
        m = own.means.get(slot.name, 0.0) + np.float32(step.grad_scale) * grad
        own.means[slot.name] = m
        add(target, slot, np.float32(-step.lr) * m)


@pytest.mark.parametrize(
    "update",
    [ignores_grad_scale, writes_the_parameters_itself, keeps_its_state_outside_of_the_arena],
)
def test_an_update_that_breaks_a_promise_is_found(own, update):
    own.update, own.means = update, {}
    assert worst(own()) > 100 * tolerances.PLUGIN_STEP


def test_an_update_that_takes_float32_alone_is_asked_for_a_reference(own):
    update = own.update

    def narrow(self, target, pairs, step):
        if target.flat.dtype != np.float32:
            raise TypeError("float32 alone")
        update(self, target, pairs, step)

    own.update = narrow
    with pytest.raises(ConfigError, match="float32 alone; give it a method `reference`"):
        worst(own())
    own.reference = formula(own().half)
    assert worst(own()) <= tolerances.PLUGIN_STEP


@pytest.mark.slow
def test_the_command_compares_it_and_names_a_wrong_one(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(EXAMPLE.read_text().replace("* step.grad_scale)", "* 1.0)"))
    small = Path(small_config(tmp_path).model).name
    quick = ("--backends", "numpy,mlx:cpu", "--kernels", "auto", "--seq-len", "5", "--steps", "2")
    right = mlxhog(tmp_path, "parity", "--plugin", str(EXAMPLE), *quick, "--json")
    assert right.code == 0, right.err
    record = json.loads(right.out)
    steps = [row for row in record["rows"] if row["what"].startswith("step/my_optimizer/")]
    assert record["subject"] == "tiny"
    assert {(row["a"], row["b"]) for row in steps} == {("mlx:cpu", "formula")}
    found = mlxhog(tmp_path, "parity", small, "--plugin", str(wrong), *quick)
    assert found.code == 1
    assert "disagree: step/my_optimizer/" in found.err
    assert "FAIL  step/my_optimizer" in found.out
    none = changed(quick, "--steps", "0")
    untaken = mlxhog(tmp_path, "parity", small, "--plugin", str(EXAMPLE), *none)
    assert "not compared: my_optimizer, which takes no step" in untaken.out
