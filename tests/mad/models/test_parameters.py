"""What the wrapper adds to the layers' parameters, and how all of them begin."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mlxhog.models.families import init_params
from mlxhog.models.mad import MADConfig, param_spec
from mlxhog.models.mad.layers import LAYERS, make


def config(*layers: str, **changes: object) -> MADConfig:
    made = tuple(map(make, layers))
    return MADConfig(vocab_size=512, hidden_size=64, layers=made, max_length=256, **changes)


@pytest.mark.parametrize("backbone", ["language-model", "autoencoder"])
def test_the_wrapper_begins_normal_its_biases_at_0_and_a_language_models_head_as_a_linear_map(
    backbone: str,
) -> None:
    found = init_params(config("swiglu", backbone=backbone, position="learned"), 1)
    own = {name: value for name, value in found.items() if not name.startswith("layers.")}
    assert {"embedding.weight", "position.weight", "head.weight", "head.bias"} <= own.keys()
    assert ("decoder.1.linear.weight" in own) == (backbone == "autoencoder")
    for name, value in own.items():
        if "norm" in name:
            assert (value == 1).all(), name
        elif name.startswith("head") and backbone == "language-model":
            bound = 1 / math.sqrt(64)  # torch.nn.Linear's, weight and bias
            assert 0.95 * bound < abs(value).max() <= bound, name
            assert abs(value.mean()) < 5 * bound / math.sqrt(3 * value.size), name
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert abs(value.mean()) < 5 * 0.02 / math.sqrt(value.size), name
            assert abs(value.std() / 0.02 - 1) < 5 / math.sqrt(2 * value.size), name


@pytest.mark.parametrize("name", sorted(layer.name for layer in LAYERS))
def test_a_layer_begins_as_it_says_and_the_wrapper_changes_nothing_of_it(name: str) -> None:
    layer = make(name)
    spec = param_spec(config("swiglu", name))
    for own in layer.param_spec(64):
        assert replace(spec[f"layers.1.{own.name}"], name=own.name) == own


def test_every_layer_begins_with_numbers_of_its_own() -> None:
    found = init_params(config("swiglu", "swiglu"), 1)
    assert not np.array_equal(found["layers.0.w1.weight"], found["layers.1.w1.weight"])


@pytest.mark.parametrize("position", ["none", "learned"])
def test_of_the_wrapper_the_maps_decay_and_no_embedding_norm_or_bias(position: str) -> None:
    spec = param_spec(config("swiglu", backbone="autoencoder", position=position))
    assert {name for name in spec if spec[name].decay and not name.startswith("layers.")} == {
        "decoder.0.linear.weight",
        "decoder.1.linear.weight",
        "head.weight",
    }
