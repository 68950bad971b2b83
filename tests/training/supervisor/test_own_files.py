"""An optimizer or a strategy is one file of the user's own, which changes no other file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlxhog.checkpoint import checkpoint
from mlxhog.config import plugins
from mlxhog.config.components import STRATEGIES
from mlxhog.training.supervisor.training import train
from tests.own_plugins import mlxhog
from tests.training.small import small_config

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_optimizer.py"


@pytest.mark.slow
def test_a_run_with_an_own_optimizer_is_recorded_replayed_and_resumed(tmp_path):
    small_config(tmp_path)  # writes a text
    small = (
        *("--model", "small.yaml", "--data", "text", "--seq-len", "32", "--steps", "3"),
        *("--eval-every", "off", "--sample-every", "off", "--quiet", "--json"),
    )
    recorded = ("--workers", "mlx:cpu*2", "--determinism", "record")
    chosen = ("--plugin", str(EXAMPLE), "--optimizer", "my_optimizer(half=0.02)")
    new = mlxhog(tmp_path, "train", *chosen, *recorded, *small)
    assert new.code == 0, new.err
    run = Path(json.loads(new.out)["run"])
    assert yaml.safe_load((tmp_path / run / "config.yaml").read_text())["optimizer"] == {
        "name": "my_optimizer", "beta": 0.9, "half": 0.02, "weight_decay": 0.1,
    }  # fmt: skip
    replayed = mlxhog(tmp_path, "replay", "latest")
    assert replayed.code == 0, replayed.err
    words = ("train", "--resume", "latest", "--determinism", "none", "--steps", "2", "--quiet")
    resumed = mlxhog(tmp_path, *words, "--optimizer", "my_optimizer(beta=0.5)", "--json")
    assert resumed.code == 0, resumed.err
    saved = checkpoint.load(tmp_path / json.loads(resumed.out)["checkpoint"])
    assert saved.state["optimizer"] == "my_optimizer"
    assert any(np.any(value) for name, value in saved.optimizer.items() if name.startswith("m."))
    numbers = yaml.safe_load((tmp_path / run / "config.yaml").read_text())["optimizer"]
    assert (numbers["beta"], numbers["half"]) == (0.5, 0.02)
    flat = mlxhog(tmp_path, "train", *chosen, "--half", "0.1")
    assert """no flag '--half'; write --optimizer "my_optimizer(half=VALUE)\"""" in flat.err


FILE = Path(__file__).parents[3] / "examples" / "my_strategy.py"
TWO = {"workers": "mlx:cpu*2", "plugin": str(FILE)}


@pytest.mark.slow
def test_a_strategy_of_ones_own_trains_with_two_workers_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(STRATEGIES, "_by_name", dict(STRATEGIES.known()))  # of this test
    plugins.load(FILE)
    first = train(small_config(tmp_path, steps=20, strategy="my_strategy(share=0.3)", **TWO))
    assert (first.status, first.steps) == ("done", 20)
    stored = yaml.safe_load((Path(first.run) / "config.yaml").read_text())
    assert (stored["strategy"]["name"], stored["strategy"]["share"]) == ("my_strategy", 0.3)
    second = train(replace(small_config(tmp_path, resume=first.run, **TWO), steps=10))
    assert (second.status, second.steps) == ("done", 30)
