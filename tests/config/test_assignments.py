"""Changed fields add up over sources and flags, and a wrong one is named."""

from pathlib import Path

import pytest

from mlxhog.base import plain_yaml
from mlxhog.cli.train import configuration
from mlxhog.cli.train import run as train
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (None, {}),
        ("", {}),
        ("hidden_size=256", {"hidden_size": 256}),
        ("a=1, b=[1, 5],c={x: 1, y: 2}", {"a": 1, "b": [1, 5], "c": {"x": 1, "y": 2}}),
        ("a=1, b=2, a=3", {"b": 2, "a": 3}),
        ("a = 1e-6 , b=null", {"a": "1e-6", "b": None}),
    ],
)
def test_a_text_names_fields_and_values(text, values):
    assert plain_yaml.assignments(text) == values
    assert plain_yaml.assignments(plain_yaml.as_assignments(values)) == values


@pytest.mark.parametrize("text", ["hidden_size", "=3", "a=", "a=[1", "a=1, b"])
def test_what_is_no_assignment_is_named(text):
    with pytest.raises(ConfigError, match="^set is "):
        TrainConfig(set=text)


def given(words):
    return configuration(*train.flags().parse(words.split()))


def test_flags_and_the_file_add_up_and_the_last_value_of_a_field_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("set: {hidden_size: 64, slstm_at: [1]}\n")
    Path("b.yaml").write_text("set: hidden_size=64, num_heads=2\n")
    both = given("-c a.yaml --set hidden_size=256 --set num_hidden_layers=6").set
    assert plain_yaml.assignments(both) == {
        "slstm_at": [1], "hidden_size": 256, "num_hidden_layers": 6,
    }  # fmt: skip
    assert plain_yaml.assignments(given("-c b.yaml --set num_heads=4").set) == {
        "hidden_size": 64, "num_heads": 4,
    }  # fmt: skip
    assert given("-c a.yaml --set none").set is None
    Path("c.yaml").write_text("set: 5\n")
    with pytest.raises(ConfigError, match=r"c.yaml:1: set is 5; wanted NAME=VALUE"):
        given("-c c.yaml")


def test_what_a_run_stores_says_the_same_again(tmp_path):
    config = TrainConfig(set={"hidden_size": 256, "slstm_at": [1, 3]})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert given(f"-c {tmp_path / 'config.yaml'}") == config
