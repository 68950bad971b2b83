"""A strategy in a file of the user's own: examples/my_strategy.py, which changes no other file."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from mlxhog.config import plugins
from mlxhog.config.choices import STRATEGIES
from mlxhog.config.strategy import StrategyChoice
from mlxhog.errors import ConfigError
from mlxhog.strategies import build
from mlxhog.training.plan import make_plan
from mlxhog.training.run import train
from tests.training.small import small_config

FILE = Path(__file__).parents[2] / "examples" / "my_strategy.py"
TWO = {"workers": "mlx:cpu*2", "plugin": str(FILE)}


@pytest.fixture
def own(monkeypatch):
    """The module of the file, unknown to other tests."""
    monkeypatch.setattr(STRATEGIES, "_by_name", dict(STRATEGIES.known()))
    return plugins.load(FILE)


def test_a_strategy_of_ones_own_keeps_the_options_that_its_class_declares(own, tmp_path):
    options = {**TWO, "strategy": "my_strategy", "optimizer": "sgd"}
    config = small_config(tmp_path, predict="own", staleness_lr="exp", my_share=0.3, **options)
    assert config.strategy == own.MyStrategy(predict="own", staleness_lr="exp", share=0.3)
    assert config.prediction == "own"
    plan = make_plan(config)
    assert isinstance(plan.strategy, own.Run)
    assert plan.free_slots > 0
    with pytest.raises(ConfigError, match="my_strategy has no slack; ssp has"):
        replace(config, **{"slack": 2})
    with pytest.raises(ConfigError, match="record, but strategy is my_strategy"):
        small_config(tmp_path, determinism="record", **options)


def test_a_strategy_without_a_runner_is_refused_with_the_missing_line(own, tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Lost(StrategyChoice):
        name = "lost"

    config = small_config(tmp_path, strategy="hogwild")
    with pytest.raises(ConfigError, match=r"no class runs strategy lost; put @runs\(Lost\)"):
        build(replace(config, strategy=Lost()), 2)


@pytest.mark.slow
def test_a_strategy_of_ones_own_trains_with_two_workers_and_resumes(own, tmp_path):
    first = train(small_config(tmp_path, steps=20, strategy="my_strategy(share=0.3)", **TWO))
    assert (first.status, first.steps) == ("done", 20)
    stored = yaml.safe_load((Path(first.run) / "config.yaml").read_text())
    assert (stored["strategy"]["name"], stored["strategy"]["share"]) == ("my_strategy", 0.3)
    second = train(replace(small_config(tmp_path, resume=first.run, **TWO), steps=10))
    assert (second.status, second.steps) == ("done", 30)
