"""A run whose mLSTM cell is Metal source on the CPU: the same training, and it says so."""

import json
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.cli.train import summary
from mlxhog.report.metrics import Progress
from tests.training.small import largest_difference, mixed_model, parameters, small_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", ["mlx:cpu", "torch:cpu"])
def test_training_on_emulated_kernels_gives_the_parameters_of_the_reference(
    tmp_path: Path, workers: str
) -> None:
    seen: list[Progress] = []
    options = {"steps": 10, "workers": workers}
    reference = train(small_config(tmp_path, **options, kernels="reference"))
    emulated = train(
        small_config(tmp_path, **options, kernels="metal-emulated"), observer=seen.append
    )
    # Ten steps of 1e-3; both compute in float32, in other orders.
    assert largest_difference(parameters(emulated), parameters(reference)) < 1e-4
    assert reference.to_json()["emulated"] is False
    assert emulated.to_json()["emulated"] is True
    assert "kernels metal-emulated: Metal source ran on the CPU" in summary(emulated)
    assert "kernels metal-emulated: Metal source on the CPU, a test" in str(seen[0].message)
    assert json.loads((Path(emulated.run) / "run.json").read_text())["emulated"] is True


@pytest.mark.parametrize("workers", ["torch:cpu", "mlx:cpu"])
def test_a_mixed_stack_trains_on_emulated_kernels_to_the_parameters_of_the_reference(
    tmp_path: Path, workers: str
) -> None:
    options = {"steps": 3, "workers": workers, "model": mixed_model(tmp_path)}
    reference = train(small_config(tmp_path, **options, kernels="reference"))
    emulated = train(small_config(tmp_path, **options, kernels="metal-emulated"))
    # Three steps of 1e-3; both compute in float32, in other orders.
    assert largest_difference(parameters(emulated), parameters(reference)) < 1e-4
