"""Fresh parameters follow the papers' training code, and the xlstm package for its own stack."""

import json
import math
from dataclasses import replace

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
V1 = {
    "vocab_size": 512, "embedding_dim": D, "num_blocks": BLOCKS, "slstm_at": [1], "bias": True,
    "mlstm_block": {}, "slstm_block": {"slstm": {"recurrent_weight_init": "standard"}},
}  # fmt: skip
MLSTM, SLSTM = (f"xlstm_block_stack.blocks.{layer}" for layer in (0, 1))
LAYER = "backbone.blocks.1"
SMALL, WANG = math.sqrt(2 / (5 * D)), 2 / (BLOCKS * math.sqrt(D))
DRAWN = {
    SMALL: f"backbone.embeddings lm_head {LAYER}.mlstm_layer.q {LAYER}.mlstm_layer.k "
    f"{LAYER}.mlstm_layer.v {LAYER}.ffn.proj_up_gate {LAYER}.ffn.proj_up token_embedding "
    f"{MLSTM}.xlstm.proj_up {MLSTM}.xlstm.q_proj {MLSTM}.xlstm.k_proj {MLSTM}.xlstm.v_proj "
    f"{SLSTM}.xlstm.igate {SLSTM}.xlstm.fgate {SLSTM}.xlstm.zgate {SLSTM}.xlstm.ogate "
    f"{SLSTM}.ffn.proj_up",
    WANG: f"{LAYER}.mlstm_layer.out_proj {LAYER}.ffn.proj_down {MLSTM}.xlstm.proj_down "
    f"{SLSTM}.ffn.proj_down",
}
"""Standard deviation -> the matrices that are normal with it."""
UNIFORM = {
    f"{MLSTM}.xlstm.conv1d.conv.weight": 0.5,
    f"{SLSTM}.xlstm.conv1d.conv.weight": 0.5,
    f"{SLSTM}.xlstm.slstm_cell._recurrent_kernel_": D**-0.5,
}
CONSTANT = {
    0: f"{MLSTM}.xlstm_norm.weight {MLSTM}.xlstm.proj_up.bias {MLSTM}.xlstm.q_proj.bias "
    f"{MLSTM}.xlstm.mlstm_cell.igate.weight {MLSTM}.xlstm.mlstm_cell.fgate.weight "
    f"{MLSTM}.xlstm.mlstm_cell.outnorm.weight {SLSTM}.xlstm.group_norm.weight "
    f"{SLSTM}.ffn_norm.weight xlstm_block_stack.post_blocks_norm.weight "
    f"{LAYER}.mlstm_layer.igate_preact.weight {LAYER}.mlstm_layer.fgate_preact.weight "
    f"{LAYER}.mlstm_layer.ogate_preact.weight",
    1: f"{MLSTM}.xlstm.learnable_skip {LAYER}.mlstm_layer.multihead_norm.weight",
    -10: f"{LAYER}.mlstm_layer.igate_preact.bias",
}
VALUES = init_params(XLSTMV1Config.from_dict(V1, strict=True), 0) | init_params(LARGE, seed=0)


def test_values_have_the_distributions_of_the_papers():
    for std, names in DRAWN.items():
        for name in names.split():
            value = VALUES[f"{name}.weight"]
            error = 4 / math.sqrt(value.size)  # four standard errors of a mean
            assert abs(value.mean()) < error * std, name
            assert abs(value.std() / std - 1) < error, name
            assert 3.0 < np.abs(value).max() / std < 6.5, name
    for name, bound in UNIFORM.items():
        value = VALUES[name]
        assert abs(value.std() * math.sqrt(3) / bound - 1) < 4 / math.sqrt(value.size)
        assert 0.98 * bound < np.abs(value).max() <= bound
    for constant, names in CONSTANT.items():
        for name in names.split():
            assert (VALUES[name] == constant).all(), name
    assert VALUES[f"{LAYER}.mlstm_layer.fgate_preact.bias"].tolist() == [3, 4, 5, 6]
    assert 0 < np.abs(VALUES[f"{MLSTM}.xlstm.mlstm_cell.igate.bias"]).max() < 0.5


@each_of("init", ["slstm_powerlaw:3:1.6", "slstm_linspace:3:5.0:9.0"])
def test_one_unit_in_a_head_takes_the_first_forget_bias(init):
    bias = initial_value(ParamSpec("b", (4 * 3,), init), seed=0)
    np.testing.assert_array_equal(bias.reshape(4, 3), [[0] * 3, [5] * 3, [0] * 3, [0] * 3])


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


def test_a_value_is_float32_and_depends_on_seed_and_name_alone():
    spec = param_spec(LARGE)["lm_head.weight"]
    value, same = initial_value(spec, 7), initial_value(spec, 7)
    assert (value.dtype, value.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(value, same)
    assert not np.array_equal(value, initial_value(spec, 8))
    assert not np.array_equal(value, initial_value(replace(spec, name="other"), 7))
    for init in ("triangle:1", "normal", "zeros:1", "slstm_powerlaw:4"):
        with pytest.raises(ConfigError, match=f"parameter w has the initialiser '{init}'"):
            initial_value(ParamSpec("w", (2, 2), init), seed=0)


def test_blocks_whose_last_matrices_begin_at_zero_are_identities():
    zero = init_params(replace(LARGE, zero_init_residual=True), seed=0)
    changed = {name for name, value in zero.items() if (value != VALUES[name]).any()}
    assert {name.rpartition(".weight")[0].rpartition(".")[2] for name in changed} == {
        "out_proj",
        "proj_down",
    }
    assert len(changed) == 2 * BLOCKS
    assert not any(zero[name].any() for name in changed)
