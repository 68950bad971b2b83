"""Machines that cannot train one model are refused at the join, with both values."""

from dataclasses import fields, replace

import pytest
import yaml

from mlxhog import TrainConfig
from mlxhog.cluster.identity import Identity
from mlxhog.config.config import train_config
from mlxhog.config.sources import by_flat_names, of_keywords
from mlxhog.errors import ConfigError

OWN = Identity(
    version="1.0", layout="l1", tokenizer="t1", data="d1", batch_size=4, seed=3, round_every=10.0,
    outer_lr=0.7, outer_momentum=0.9, round_dtype="float32", system="Linux",
)  # fmt: skip
OTHER = Identity(
    version="2.0", layout="l2", tokenizer="t2", data="d2", batch_size=8, seed=4, round_every=20.0,
    outer_lr=0.6, outer_momentum=0.8, round_dtype="bfloat16", system="Darwin",
)  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Identity)])
def test_every_difference_is_refused_with_both_values_and_a_way_out(name):
    with pytest.raises(ConfigError) as raised:
        OWN.check(replace(OWN, **{name: getattr(OTHER, name)}))
    message = str(raised.value)
    assert message.startswith(f"cluster: {name} is ")
    assert str(getattr(OWN, name)) in message
    assert str(getattr(OTHER, name)) in message
    assert "; " in message
    assert len(message.splitlines()) == 1


def test_all_differences_are_named_at_once():
    with pytest.raises(ConfigError) as raised:
        OWN.check(OTHER)
    assert len(str(raised.value).splitlines()) == len(fields(Identity))
    assert str(raised.value).endswith("; if all of them have left, restart mlxhog cluster start")


def test_equal_machines_pass_and_an_identity_survives_the_wire():
    OWN.check(Identity.from_json(OWN.to_json()))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": "9"}', '{"other": 1}', "[" * 100_000, '{"seed": 1, "seed": 2}']
)
def test_the_identity_of_another_version_is_refused_in_words(text):
    with pytest.raises(ConfigError, match="install the same version.*; if all of them have left"):
        OWN.check(Identity.from_json(text))


@pytest.mark.parametrize(
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
        ({"round_every": 3}, "add --cluster HOST:PORT"),
    ],
)
def test_a_wrong_choice_of_a_cluster_is_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        TrainConfig(**options)


def test_a_run_without_a_cluster_is_read_back_from_its_own_options():
    stored = yaml.safe_load(TrainConfig().to_yaml())
    layer = of_keywords("config.yaml:1", stored)
    assert train_config([by_flat_names(layer)]).cluster is None


def test_the_token_of_a_cluster_is_not_stored_with_the_run():
    config = TrainConfig(cluster="here:1", cluster_token="a secret")
    assert config.cluster_token == "a secret"
    stored = config.to_yaml()
    assert "a secret" not in stored
    assert yaml.safe_load(stored)["cluster"] == "here:1"


def test_an_address_alone_makes_the_run_lock_free():
    config = TrainConfig(cluster="mac.lan:8600", round_every="1m")
    assert (config.cluster, config.round_every) == ("mac.lan:8600", 60.0)
    assert config.strategy is not None
    assert config.strategy.name == "hogwild"
