"""What a worker would write for a gradient."""

import numpy as np
import pytest

from mlxhog import optim
from mlxhog.theory.analysis.sampling import WrittenSteps
from tests.optim.small import SLOTS, chosen, gradients, initial, parameter, target

DECAY = frozenset({"matrix"})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "sgd", "weight_decay": 0.0},
        {"sparsify": "topk:0.1"},
        {"sparsify": "threshold:1.5", "error_feedback": False},
    ],
    ids=str,
)
def test_it_is_what_a_step_on_the_parameters_changes(options):
    config = chosen(**options, lr=0.1, clip=0.0)
    params = initial()
    before = params.copy()
    support = WrittenSteps(config, SLOTS, params, DECAY)
    optimizer, flat = optim.build(config), params.copy()
    place = target(optimizer, flat, *DECAY)
    for step in range(1, 5):
        masks = support.masks(gradients(step))
        flat[...] = params  # every step is taken at the same parameters
        optimizer.step(place, gradients(step), lr=config.top_lr, step=step)
        assert masks.keys() == SLOTS.keys()
        for name, mask in masks.items():
            changed = parameter(flat, SLOTS[name]) != parameter(params, SLOTS[name])
            np.testing.assert_array_equal(mask, changed)
    np.testing.assert_array_equal(params, before)


def test_a_gradient_that_is_zero_writes_nothing_with_sgd():
    config = chosen("sgd", weight_decay=0.0, lr=0.1, clip=0.0)
    grad = np.zeros((6, 9), np.float32)
    grad[2, 3] = 1.0
    mask = WrittenSteps(config, SLOTS, initial(), DECAY).masks({"matrix": grad})["matrix"]
    assert np.argwhere(mask).tolist() == [[2, 3]]
