"""Machines that cannot train one model are refused at the join, with both values."""

import json

import pytest
import yaml

from mlxhog import TrainConfig
from mlxhog.cluster.group import WAYS_OUT, check_identity
from mlxhog.config.config import train_config
from mlxhog.config.sources import by_flat_names, of_keywords
from mlxhog.errors import ConfigError
from tests.cluster.members import IDENTITY
from tests.pairs import each_of


def test_equal_machines_pass_and_every_difference_is_named_with_both_values_and_a_way_out():
    check_identity(IDENTITY, json.dumps(IDENTITY))
    others = {name: f"other {name}" for name in IDENTITY}
    with pytest.raises(ConfigError) as raised:
        check_identity(IDENTITY, json.dumps(others))
    lines = str(raised.value).splitlines()
    assert len(lines) == len(IDENTITY) == len(WAYS_OUT)
    for name, line in zip(IDENTITY, lines, strict=True):
        assert line.startswith(f"cluster: {name} is ")
        assert str(IDENTITY[name]) in line
        assert f"'other {name}' on the other machines; {WAYS_OUT[name]}" in line
    assert lines[-1].endswith("; if all of them have left, restart mlxhog cluster start")


@each_of("text", ["", "[]", '{"version": "9"}', "[" * 100_000, '{"seed": 1, "seed": 2}'])
def test_the_identity_of_another_version_is_refused_in_words(text):
    with pytest.raises(ConfigError, match="install the same version.*; if all of them have left"):
        check_identity(IDENTITY, text)


@each_of(
    ("options", "problem"),
    [
        ({"cluster": "nowhere"}, "'nowhere'; wanted HOST:PORT"),
        ({"cluster": "here:99999"}, "wanted HOST:PORT"),
        ({"cluster": "[::1]:8600"}, "a name or an IPv4 address"),
        ({"cluster": "here:1", "strategy": "sync"}, "set strategy=hogwild"),
        ({"cluster": "here:1", "strategy": "serial"}, "set strategy=hogwild"),
        ({"cluster": "here:1", "follow": "notes"}, "leave follow or cluster out"),
        ({"cluster": "here:1", "determinism": "record"}, "leave determinism out"),
        ({"cluster": "here:1", "round_dtype": "int8"}, "float32, bfloat16"),
        ({"cluster": "here:1", "cluster_timeout_s": 5}, "not above round_every"),
        ({"round_every": 3}, "needs cluster; set that, or leave round_every out"),
    ],
)
def test_a_wrong_choice_of_a_cluster_is_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        TrainConfig(**options)


def test_an_address_alone_makes_the_run_lock_free_and_its_token_is_not_stored():
    config = TrainConfig(cluster="mac.lan:8600", round_every="1m", cluster_token="a secret")
    assert (config.cluster, config.round_every) == ("mac.lan:8600", 60.0)
    assert config.strategy.name == "hogwild"
    assert config.cluster_token == "a secret"
    assert "a secret" not in config.to_yaml()
    for one in (config, TrainConfig()):
        layer = of_keywords("config.yaml:1", yaml.safe_load(one.to_yaml()))
        assert train_config([by_flat_names(layer)]).cluster == one.cluster
