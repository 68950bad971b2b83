"""Fresh parameters of the original stack follow the xlstm package's own initialisation."""

import math

import numpy as np
import pytest

from mlxhog.models.families import init_params
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.pairs import each_of

D, BLOCKS = 256, 4
CFG = XLSTMV1Config.from_dict(
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
SMALL, WANG = math.sqrt(2 / (5 * D)), 2 / (BLOCKS * math.sqrt(D))
NORMALS = {
    "token_embedding.weight": SMALL,
    "lm_head.weight": SMALL,
    f"{MLSTM}.xlstm.proj_up.weight": SMALL,
    f"{MLSTM}.xlstm.q_proj.weight": SMALL,
    f"{MLSTM}.xlstm.k_proj.weight": SMALL,
    f"{MLSTM}.xlstm.v_proj.weight": SMALL,
    f"{MLSTM}.xlstm.proj_down.weight": WANG,
    f"{SLSTM}.xlstm.igate.weight": SMALL,
    f"{SLSTM}.xlstm.fgate.weight": SMALL,
    f"{SLSTM}.xlstm.zgate.weight": SMALL,
    f"{SLSTM}.xlstm.ogate.weight": SMALL,
    f"{SLSTM}.ffn.proj_up.weight": SMALL,
    f"{SLSTM}.ffn.proj_down.weight": WANG,
}
UNIFORMS = {
    f"{MLSTM}.xlstm.conv1d.conv.weight": 0.5,
    f"{MLSTM}.xlstm.conv1d.conv.bias": 0.5,
    f"{SLSTM}.xlstm.conv1d.conv.weight": 0.5,
    f"{SLSTM}.xlstm.slstm_cell._recurrent_kernel_": 1 / math.sqrt(D),
}
ZEROS = [
    f"{MLSTM}.xlstm_norm.weight",
    f"{MLSTM}.xlstm.proj_up.bias",
    f"{MLSTM}.xlstm.q_proj.bias",
    f"{MLSTM}.xlstm.mlstm_cell.igate.weight",
    f"{MLSTM}.xlstm.mlstm_cell.fgate.weight",
    f"{MLSTM}.xlstm.mlstm_cell.outnorm.weight",
    f"{SLSTM}.xlstm.group_norm.weight",
    f"{SLSTM}.ffn_norm.weight",
    "xlstm_block_stack.post_blocks_norm.weight",
]
PARAMS = init_params(CFG, seed=0)


@each_of(("name", "std"), NORMALS.items())
def test_matrices_are_normal_with_the_standard_deviation_of_the_package(name, std):
    value = PARAMS[name]
    error = 4 / math.sqrt(value.size)  # four standard errors of a mean
    assert abs(value.mean()) < error * std
    assert abs(value.std() / std - 1) < error
    assert 3.0 < np.abs(value).max() / std < 6.5


@each_of(("name", "bound"), UNIFORMS.items())
def test_convolutions_and_the_standard_recurrent_matrix_are_uniform(name, bound):
    value = PARAMS[name]
    error = 4 / math.sqrt(value.size)
    assert abs(value.mean()) < error * bound
    assert abs(value.std() * math.sqrt(3) / bound - 1) < error
    assert 0.98 * bound < np.abs(value).max() <= bound


@each_of("name", ZEROS)
def test_norms_gates_and_biases_start_at_zero(name):
    assert not PARAMS[name].any()


def test_an_input_gate_starts_about_zero_and_the_skip_at_one():
    bias = PARAMS[f"{MLSTM}.xlstm.mlstm_cell.igate.bias"]
    assert 0 < np.abs(bias).max() < 0.5
    np.testing.assert_array_equal(PARAMS[f"{MLSTM}.xlstm.learnable_skip"], np.ones(2 * D))


@pytest.mark.parametrize("init", ["slstm_powerlaw:3:1.6", "slstm_linspace:3:5.0:9.0"])
def test_one_unit_in_a_head_takes_the_first_forget_bias(init):
    bias = initial_value(ParamSpec("b", (4 * 3,), init), seed=0)
    np.testing.assert_array_equal(bias.reshape(4, 3), [[0] * 3, [5] * 3, [0] * 3, [0] * 3])


@pytest.mark.parametrize("name", ["standard", "zeros"])
def test_the_other_biases_of_the_slstm_are_uniform_or_zero(name):
    cfg = XLSTMV1Config.from_dict(
        CFG.to_dict() | {"slstm_block": {"slstm": {"bias_init": name}}}, strict=False
    )
    bias = init_params(cfg, seed=0)[f"{SLSTM}.xlstm.slstm_cell._bias_"]
    bound = 1 / math.sqrt(D) if name == "standard" else 0.0
    assert np.abs(bias).max() <= bound
    assert np.abs(bias).max() >= 0.98 * bound
