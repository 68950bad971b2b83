"""Fresh parameters follow the initialisation of the papers' training code."""

import json
import math

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from tests.models.golden import FOLDER

D, BLOCKS, NH = 256, 4, 4
CFG = XLSTMLargeConfig(vocab_size=512, hidden_size=D, num_hidden_layers=BLOCKS, num_heads=NH)
SMALL = math.sqrt(2 / (5 * D))
WANG = 2 / (BLOCKS * math.sqrt(D))
NORMALS = {
    "backbone.embeddings.weight": SMALL,
    "lm_head.weight": SMALL,
    "backbone.blocks.1.mlstm_layer.q.weight": SMALL,
    "backbone.blocks.1.mlstm_layer.k.weight": SMALL,
    "backbone.blocks.1.mlstm_layer.v.weight": SMALL,
    "backbone.blocks.1.ffn.proj_up_gate.weight": SMALL,
    "backbone.blocks.1.ffn.proj_up.weight": SMALL,
    "backbone.blocks.1.mlstm_layer.out_proj.weight": WANG,
    "backbone.blocks.1.ffn.proj_down.weight": WANG,
}


@pytest.mark.parametrize(("name", "std"), NORMALS.items())
def test_matrices_are_normal_with_the_standard_deviation_of_the_papers(name, std):
    value = init_params(CFG, seed=0)[name]
    error = 4 / math.sqrt(value.size)  # four standard errors of a mean
    assert abs(value.mean()) < error * std
    assert abs(value.std() / std - 1) < error
    assert 3.5 < np.abs(value).max() / std < 6.5


def test_gates_start_closed_for_input_and_open_for_memory():
    layer = {
        name.removeprefix("backbone.blocks.0.mlstm_layer."): value
        for name, value in init_params(CFG, seed=0).items()
    }
    for gate in ("igate", "fgate", "ogate"):
        assert not layer[f"{gate}_preact.weight"].any()
    np.testing.assert_array_equal(layer["igate_preact.bias"], [-10.0] * NH)
    np.testing.assert_array_equal(layer["fgate_preact.bias"], [3.0, 4.0, 5.0, 6.0])
    np.testing.assert_array_equal(layer["multihead_norm.weight"], np.ones(D))


def test_names_and_shapes_are_those_of_transformers_and_so_are_most_statistics():
    recorded = json.loads((FOLDER / "hf_init_stats.json").read_text())["stats"]
    ours = init_params(CFG, seed=0)
    assert {name: list(value.shape) for name, value in ours.items()} == {
        name: entry["shape"] for name, entry in recorded.items()
    }
    for name, entry in recorded.items():
        # transformers also zeroes the feed-forward gate, and scales its output by U, not d.
        if "proj_up_gate" in name or "proj_down" in name:
            continue
        assert ours[name].std() == pytest.approx(entry["std"], rel=0.05, abs=1e-6), name


def test_a_value_depends_on_seed_and_name_alone():
    spec = param_spec(CFG)["lm_head.weight"]
    np.testing.assert_array_equal(initial_value(spec, 7), initial_value(spec, 7))
    assert not np.array_equal(initial_value(spec, 7), initial_value(spec, 8))
    other = ParamSpec("other", spec.shape, spec.init)
    assert not np.array_equal(initial_value(spec, 7), initial_value(other, 7))
    narrow = XLSTMLargeConfig(
        vocab_size=512, hidden_size=D, num_hidden_layers=1, num_heads=NH, v_dim_factor=2.0
    )
    np.testing.assert_array_equal(
        init_params(narrow, 7)["lm_head.weight"], init_params(CFG, 7)["lm_head.weight"]
    )


def test_every_value_is_contiguous_float32():
    for value in init_params(CFG, seed=0).values():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous


@pytest.mark.parametrize("init", ["triangle:1", "normal", "zeros:1", "slstm_powerlaw:4"])
def test_an_unknown_initialiser_is_refused_by_name(init):
    with pytest.raises(ConfigError, match=f"parameter w has the initialiser '{init}'; known are"):
        initial_value(ParamSpec("w", (2, 2), init), seed=0)
