"""Runs with Muon: either backend, one worker or several, saved and resumed like AdamW's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.checkpoint import checkpoint
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan import make_plan
from tests.training.small import identical, largest_difference, parameters, small_config

pytestmark = pytest.mark.slow

MUON = {"optimizer": "muon", "lr": 3e-3, "schedule": "constant", "warmup": 0}
WITHOUT_HIDDEN = """
model_type: mad
vocab_size: 320
hidden_size: 32
layers: [slstm-v1]
bos_token_id: 256
"""


def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(tmp_path: Path) -> None:
    common = {**MUON, "strategy": "serial"}
    whole = train(small_config(tmp_path, steps=30, **common))
    first = train(small_config(tmp_path, steps=13, **common))
    second = train(small_config(tmp_path, steps=17, resume=first.run, **common))
    assert second.steps == 30
    assert identical(parameters(whole), parameters(second))


def test_hidden_matrices_keep_a_mean_and_the_rest_both_moments(tmp_path: Path) -> None:
    result = train(small_config(tmp_path, **MUON))
    saved = checkpoint.load(Path(str(result.checkpoint)))
    hidden = families.hidden_matrices(load_architecture(str(tmp_path / "small.yaml")))
    assert len(hidden) == 8
    for name in saved.params:
        assert saved.optimizer[f"m.1/{name}"].any()
        assert saved.optimizer[f"v.1/{name}"].any() == (name not in hidden)


def test_both_backends_take_the_same_steps(tmp_path: Path) -> None:
    """As far as their gradients agree: float32 rounding, which a polar factor enlarges."""
    common = {**MUON, "strategy": "serial", "steps": 5, "orthogonalization_dtype": "float32"}
    by_torch, by_mlx = (
        parameters(train(small_config(tmp_path, workers=backend, **common)))
        for backend in ("torch:cpu", "mlx:cpu")
    )
    start = parameters(train(small_config(tmp_path, workers="torch:cpu", **{**common, "steps": 1})))
    assert largest_difference(by_torch, start) > 5e-3
    assert largest_difference(by_torch, by_mlx) < 5e-4


@pytest.mark.parametrize("strategy", ["hogwild", "sync", "round_robin", "avg_runs"])
def test_workers_of_both_frameworks_train_with_it(tmp_path: Path, strategy: str) -> None:
    workers = "mlx:cpu,torch:cpu"
    config = small_config(tmp_path, strategy=strategy, workers=workers, steps=100, **MUON)
    result = train(config)
    assert (result.status, result.steps) == ("done", 100)
    assert all(np.isfinite(value).all() for value in parameters(result).values())


def test_a_model_without_hidden_matrices_trains_with_adamw_and_the_plan_says_so(
    tmp_path: Path,
) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(WITHOUT_HIDDEN)
    common = {"model": str(model), "strategy": "serial", "steps": 10}
    muon = small_config(tmp_path, optimizer="muon", **common)
    (note,) = [note for note in make_plan(muon).notes if "muon" in note]
    assert "no hidden matrix (both sides at least 16, half its width)" in note
    assert "adamw moves every parameter" in note
    by_adamw = train(small_config(tmp_path, **common))
    assert identical(parameters(train(muon)), parameters(by_adamw))
