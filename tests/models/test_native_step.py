"""The native step computes a sequence to the same bits in any batch; and where it is chosen."""

from functools import partial

import numpy as np
import pytest

from mlxhog.errors import ConfigError
from mlxhog.models import lm_native
from mlxhog.models.ops.kernels import choose, resolve
from mlxhog.models.ops.reference import ops_mlx, ops_torch
from tests.models.sample import LARGE, V1, config, perturbed_params
from tests.pairs import each_of

MODELS = (
    LARGE
    | V1
    | {
        "biases": partial(config, use_bias=True, out_norm_bias=True),
        "three threads": partial(config, hidden_size=512, num_heads=4, vocab_size=3000),
    }
)


def model(name):
    cfg = MODELS[name]()
    return cfg, perturbed_params(cfg, seed=1)


def native(cfg, params, *, threads=1, kernels="native"):
    how = {"framework": "torch", "kernels": kernels, "threads": threads}
    return lm_native.decoder(cfg, params, **how)


def decode(decoder, tokens):
    """Logits (B, S, V) of tokens read one at a time, and the last state."""
    logits, state = [], None
    for t in range(tokens.shape[1]):
        result, state = decoder.step(tokens[:, t], state)
        logits.append(result)
    return np.stack(logits, axis=1), state[0][0]


@pytest.mark.slow
@each_of("rows", [7, 41])  # fewer than lanes, and groups of lanes for two threads
@each_of("name", MODELS)
def test_a_sequence_decodes_to_the_same_bits_alone_and_in_a_batch(name, rows):
    cfg, params = model(name)
    tokens = np.random.default_rng(3).integers(0, cfg.vocab_size, (rows, 5)).astype(np.int32)
    logits, state = decode(native(cfg, params, threads=3), tokens)
    one_by_one = native(cfg, params)
    for row in (*range(min(rows, 7)), rows - 1):
        alone, state_alone = decode(one_by_one, tokens[row : row + 1])
        np.testing.assert_array_equal(alone[0], logits[row])
        np.testing.assert_array_equal(state_alone[0], state[row])


@each_of(
    ("name", "parameter"),
    [
        ("plain", "backbone.blocks.0.mlstm_layer.igate_preact.bias"),
        ("v1, mixed", "xlstm_block_stack.blocks.0.xlstm.mlstm_cell.igate.bias"),
        ("v1, mixed", "xlstm_block_stack.blocks.1.xlstm.slstm_cell._bias_"),
    ],
)
def test_a_parameter_that_is_not_finite_shows_in_the_logits_and_a_wrong_token_is_named(
    name, parameter
):
    cfg, params = model(name)
    params[parameter][1] = np.nan
    decoder = native(cfg, params)
    logits, _ = decoder.step(np.array([1], np.int32), None)
    assert np.isnan(logits).any()
    with pytest.raises(ValueError, match=r"token 23 in row 1 is outside \[0, 23\)"):
        decoder.step(np.array([0, 23], np.int32), None)


def test_the_native_step_is_chosen_where_native_kernels_compute_in_float32():
    cfg, params = model("plain")
    assert native(cfg, params) is not None
    assert native(cfg, params, kernels="reference") is None


@each_of(
    ("framework", "kernels", "device", "message"),
    [
        ("mlx", "native", "gpu", "'native', which mlx:gpu cannot run; use auto"),
        ("torch", "metal", "cpu", "'metal', which torch:cpu cannot run; use auto"),
        ("torch", "fast", "cpu", "'fast'; choose one of auto, reference, native"),
    ],
)
def test_kernels_that_a_device_cannot_run_are_refused(framework, kernels, device, message):
    with pytest.raises(ConfigError, match=message):
        choose(framework, kernels, device)


def test_auto_is_native_on_a_cpu_and_metal_on_a_gpu_where_the_kernels_are_verified():
    for framework, plain, gpu in (("torch", ops_torch.OPS, "mps"), ("mlx", ops_mlx.OPS, "gpu")):
        assert choose(framework, "auto", gpu) is choose(framework, "reference", "cpu") is plain
        assert resolve(framework, "auto", gpu, metal_verified=True) == "metal"
        assert resolve(framework, "reference", gpu, metal_verified=True) == "reference"
        assert resolve(framework, "auto", "cpu", metal_verified=True) == "native"
