"""Fresh parameters follow the papers' training code, and the xlstm package for its own stack."""

import json
import math

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.models.golden import FOLDER
from tests.pairs import each_of

D, BLOCKS, NH = 256, 4, 4
LARGE = XLSTMLargeConfig(vocab_size=512, hidden_size=D, num_hidden_layers=BLOCKS, num_heads=NH)
SMALL = math.sqrt(2 / (5 * D))
WANG = 2 / (BLOCKS * math.sqrt(D))
V1 = XLSTMV1Config.from_dict(
    {
        "vocab_size": 512,
        "embedding_dim": D,
        "num_blocks": BLOCKS,
        "slstm_at": [1],
        "bias": True,
        "mlstm_block": {},
        "slstm_block": {"slstm": {"recurrent_weight_init": "standard"}},
    },
    strict=True,
)
MLSTM, SLSTM = (f"xlstm_block_stack.blocks.{layer}" for layer in (0, 1))
LAYER = "backbone.blocks.1"
NORMALS = {
    f"{name}.weight": std
    for std, names in (
        (SMALL, f"backbone.embeddings lm_head {LAYER}.mlstm_layer.q {LAYER}.mlstm_layer.k "
                f"{LAYER}.mlstm_layer.v {LAYER}.ffn.proj_up_gate {LAYER}.ffn.proj_up "
                f"token_embedding {MLSTM}.xlstm.proj_up {MLSTM}.xlstm.q_proj {MLSTM}.xlstm.k_proj "
                f"{MLSTM}.xlstm.v_proj {SLSTM}.xlstm.igate {SLSTM}.xlstm.fgate {SLSTM}.xlstm.zgate "
                f"{SLSTM}.xlstm.ogate {SLSTM}.ffn.proj_up"),
        (WANG, f"{LAYER}.mlstm_layer.out_proj {LAYER}.ffn.proj_down {MLSTM}.xlstm.proj_down "
               f"{SLSTM}.ffn.proj_down"),
    )
    for name in names.split()
}  # fmt: skip
UNIFORMS = {
    f"{MLSTM}.xlstm.conv1d.conv.weight": 0.5,
    f"{MLSTM}.xlstm.conv1d.conv.bias": 0.5,
    f"{SLSTM}.xlstm.conv1d.conv.weight": 0.5,
    f"{SLSTM}.xlstm.slstm_cell._recurrent_kernel_": 1 / math.sqrt(D),
}
ZEROS = (
    f"{MLSTM}.xlstm_norm.weight {MLSTM}.xlstm.proj_up.bias {MLSTM}.xlstm.q_proj.bias "
    f"{MLSTM}.xlstm.mlstm_cell.igate.weight {MLSTM}.xlstm.mlstm_cell.fgate.weight "
    f"{MLSTM}.xlstm.mlstm_cell.outnorm.weight {SLSTM}.xlstm.group_norm.weight "
    f"{SLSTM}.ffn_norm.weight xlstm_block_stack.post_blocks_norm.weight"
).split()
VALUES = init_params(V1, seed=0) | init_params(LARGE, seed=0)


@each_of(("name", "std"), NORMALS.items())
def test_matrices_are_normal_with_the_standard_deviation_of_the_papers(name, std):
    value = VALUES[name]
    error = 4 / math.sqrt(value.size)  # four standard errors of a mean
    assert abs(value.mean()) < error * std
    assert abs(value.std() / std - 1) < error
    assert 3.0 < np.abs(value).max() / std < 6.5


@each_of(("name", "bound"), UNIFORMS.items())
def test_convolutions_and_the_standard_recurrent_matrix_are_uniform(name, bound):
    value = VALUES[name]
    error = 4 / math.sqrt(value.size)
    assert abs(value.mean()) < error * bound
    assert abs(value.std() * math.sqrt(3) / bound - 1) < error
    assert 0.98 * bound < np.abs(value).max() <= bound


@each_of("name", ZEROS)
def test_norms_gates_and_biases_start_at_zero(name):
    assert not VALUES[name].any()


def test_an_input_gate_starts_about_zero_and_the_skip_at_one():
    bias = VALUES[f"{MLSTM}.xlstm.mlstm_cell.igate.bias"]
    assert 0 < np.abs(bias).max() < 0.5
    np.testing.assert_array_equal(VALUES[f"{MLSTM}.xlstm.learnable_skip"], np.ones(2 * D))


@pytest.mark.parametrize("init", ["slstm_powerlaw:3:1.6", "slstm_linspace:3:5.0:9.0"])
def test_one_unit_in_a_head_takes_the_first_forget_bias(init):
    bias = initial_value(ParamSpec("b", (4 * 3,), init), seed=0)
    np.testing.assert_array_equal(bias.reshape(4, 3), [[0] * 3, [5] * 3, [0] * 3, [0] * 3])


@pytest.mark.parametrize("name", ["standard", "zeros"])
def test_the_other_biases_of_the_slstm_are_uniform_or_zero(name):
    cfg = XLSTMV1Config.from_dict(
        V1.to_dict() | {"slstm_block": {"slstm": {"bias_init": name}}}, strict=False
    )
    bias = init_params(cfg, seed=0)[f"{SLSTM}.xlstm.slstm_cell._bias_"]
    bound = 1 / math.sqrt(D) if name == "standard" else 0.0
    assert np.abs(bias).max() <= bound
    assert np.abs(bias).max() >= 0.98 * bound


def test_gates_start_closed_for_input_and_open_for_memory():
    layer = {
        name.removeprefix("backbone.blocks.0.mlstm_layer."): value
        for name, value in init_params(LARGE, seed=0).items()
    }
    for gate in ("igate", "fgate", "ogate"):
        assert not layer[f"{gate}_preact.weight"].any()
    np.testing.assert_array_equal(layer["igate_preact.bias"], [-10.0] * NH)
    np.testing.assert_array_equal(layer["fgate_preact.bias"], [3.0, 4.0, 5.0, 6.0])
    np.testing.assert_array_equal(layer["multihead_norm.weight"], np.ones(D))


def test_names_and_shapes_are_those_of_transformers_and_so_are_most_statistics():
    recorded = json.loads((FOLDER / "hf_init_stats.json").read_text())["stats"]
    ours = init_params(LARGE, seed=0)
    assert {name: list(value.shape) for name, value in ours.items()} == {
        name: entry["shape"] for name, entry in recorded.items()
    }
    for name, entry in recorded.items():
        # transformers also zeroes the feed-forward gate, and scales its output by U, not d.
        if "proj_up_gate" in name or "proj_down" in name:
            continue
        assert ours[name].std() == pytest.approx(entry["std"], rel=0.05, abs=1e-6), name


def test_a_value_depends_on_seed_and_name_alone():
    spec = param_spec(LARGE)["lm_head.weight"]
    np.testing.assert_array_equal(initial_value(spec, 7), initial_value(spec, 7))
    assert not np.array_equal(initial_value(spec, 7), initial_value(spec, 8))
    other = ParamSpec("other", spec.shape, spec.init)
    assert not np.array_equal(initial_value(spec, 7), initial_value(other, 7))
    narrow = XLSTMLargeConfig(
        vocab_size=512, hidden_size=D, num_hidden_layers=1, num_heads=NH, v_dim_factor=2.0
    )
    np.testing.assert_array_equal(
        init_params(narrow, 7)["lm_head.weight"], init_params(LARGE, 7)["lm_head.weight"]
    )


def test_every_value_is_contiguous_float32():
    for value in init_params(LARGE, seed=0).values():
        assert value.dtype == np.float32
        assert value.flags.c_contiguous


@pytest.mark.parametrize("init", ["triangle:1", "normal", "zeros:1", "slstm_powerlaw:4"])
def test_an_unknown_initialiser_is_refused_by_name(init):
    with pytest.raises(ConfigError, match=f"parameter w has the initialiser '{init}'; known are"):
        initial_value(ParamSpec("w", (2, 2), init), seed=0)
