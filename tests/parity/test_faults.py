"""A right model never fails; one wrong sign in a gradient always does."""

import numpy as np
import pytest

from mlxhog.parity import tolerances
from mlxhog.parity.compute import compare_sides
from mlxhog.parity.engines import NumPyEngine
from mlxhog.parity.subject import ParitySide, ParitySubject
from tests.models.sample import batch, config, perturbed_params
from tests.parity.planted import SignFault, every_engine

NUMPY = ParitySide("numpy", "numpy")
OTHERS = (
    ParitySide("torch:cpu", "torch:cpu", "native"),
    ParitySide("torch:cpu+reference", "torch:cpu", "reference"),
    ParitySide("mlx:cpu", "mlx:cpu", "native"),
    ParitySide("mlx:cpu+reference", "mlx:cpu", "reference"),
)


def quiet(side, step):
    """No output."""


def first_bad(side, fault, subject):
    """Where a comparison of NumPy and a faulty side disagrees first."""
    with every_engine(fault):
        row = compare_sides(subject, [NUMPY, side], quiet).first_bad
    assert row is not None
    return row


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_a_wrong_sign_is_found_in_a_gradient_far_smaller_than_others():
    cfg = config(num_hidden_layers=1)
    tokens, targets = batch(cfg, 1, 2, seed=2)  # of two positions the head norm hides most of k
    params, fixed = perturbed_params(cfg, 2), {"tokens": tokens, "targets": targets}
    subject = ParitySubject(title="small", cfg=cfg, steps=0, inputs=params, fixed=fixed)
    assert compare_sides(subject, [NUMPY, *OTHERS], quiet).ok
    engine = NumPyEngine()
    engine.load(cfg, params)
    _, grads = engine.differentiate(tokens, targets)
    largest = max(float(np.abs(grad).max()) for grad in grads.values())
    name = "backbone.blocks.0.mlstm_layer.k.weight"
    roundings = np.abs(grads[name]).reshape(-1) / (largest * tolerances.ROUNDING)
    place = int(np.flatnonzero((roundings > 20) & (roundings < 30))[0])
    row = first_bad(OTHERS[1], SignFault(name, place), subject)
    assert row.what == f"grad/{name}"
    assert row.got is not None
    assert row.wanted == pytest.approx(-row.got, rel=0.2)
