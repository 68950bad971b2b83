"""Fresh parameters follow the papers' training code, and the xlstm package for its own stack."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mlxhog.errors import ConfigError
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config
from tests.models.golden import FOLDER
from tests.models.sample import package_of
from tests.pairs import each_of

D, BLOCKS, NH = 256, 4, 4
LARGE = XLSTMLargeConfig(vocab_size=512, hidden_size=D, num_hidden_layers=BLOCKS, num_heads=NH)
V1 = {
    "vocab_size": 512, "embedding_dim": D, "num_blocks": BLOCKS, "slstm_at": [1], "bias": True,
    "mlstm_block": {}, "slstm_block": {"slstm": {"recurrent_weight_init": "standard"}},
}  # fmt: skip
VALUES = init_params(LARGE, seed=0)


def statistics(x):
    return {"mean": float(x.mean()), "std": float(x.std()), "max": float(abs(x).max())}


def test_names_and_shapes_are_those_of_transformers_and_values_are_distributed_alike():
    recorded = json.loads((FOLDER / "hf_init_stats.json").read_text())["stats"]
    shapes = {name: list(value.shape) for name, value in VALUES.items()}
    assert shapes == {name: entry["shape"] for name, entry in recorded.items()}
    for name, entry in recorded.items():
        # transformers also zeroes the feed-forward gate, and scales its output by U, not d.
        if "proj_up_gate" in name:
            entry = recorded[name.replace("_gate", "")]
        if "proj_down" in name:
            entry = recorded[name.replace("ffn.proj_down", "mlstm_layer.out_proj")]
        assert_alike(name, VALUES[name], entry)


def test_values_of_the_stack_of_the_first_paper_are_distributed_as_the_packages():
    cfg = XLSTMV1Config.from_dict(V1, strict=True)
    torch.manual_seed(0)
    package, ours = package_of(cfg), init_params(cfg, seed=0)
    package.reset_parameters()
    for name, value in package.named_parameters():
        assert_alike(name, ours[name], statistics(value.detach().numpy()))


def assert_alike(name, x, expected):
    """Mean and standard deviation are within five errors, and so is the kind of distribution."""
    actual, error = statistics(x), 5 * math.sqrt(2 / x.size) * expected["std"]
    assert actual["mean"] == pytest.approx(expected["mean"], abs=error + 1e-6), name
    assert actual["std"] == pytest.approx(expected["std"], abs=error + 1e-6), name
    if x.size > 1000:
        largest = max(expected["max"], -expected.get("min", 0.0))
        assert actual["max"] == pytest.approx(largest, rel=0.4), name


@each_of("init", ["slstm_powerlaw:3:1.6", "slstm_linspace:3:5.0:9.0"])
def test_one_unit_in_a_head_takes_the_first_forget_bias(init):
    bias = initial_value(ParamSpec("b", (4 * 3,), init), seed=0)
    np.testing.assert_array_equal(bias.reshape(4, 3), [[0] * 3, [5] * 3, [0] * 3, [0] * 3])


def test_a_value_is_float32_and_depends_on_seed_and_name_alone():
    spec = param_spec(LARGE)["lm_head.weight"]
    value, same = initial_value(spec, 7), initial_value(spec, 7)
    assert (value.dtype, value.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(value, same)
    assert not np.array_equal(value, initial_value(spec, 8))
    assert not np.array_equal(value, initial_value(replace(spec, name="other"), 7))
    for init in ("triangle:1", "normal", "zeros:1", "slstm_powerlaw:4"):
        with pytest.raises(ConfigError, match=f"parameter w has the initializer '{init}'"):
            initial_value(ParamSpec("w", (2, 2), init), seed=0)


def test_blocks_whose_last_matrices_begin_at_zero_are_identities():
    zero = init_params(replace(LARGE, zero_init_residual=True), seed=0)
    changed = {name for name, value in zero.items() if (value != VALUES[name]).any()}
    assert {name.split(".")[-2] for name in changed} == {"out_proj", "proj_down"}
    assert len(changed) == 2 * BLOCKS
    assert not any(zero[name].any() for name in changed)
