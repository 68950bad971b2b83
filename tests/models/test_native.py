"""What holds of native operators alone; test_operators.py: what they compute."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.errors import ConfigError
from mlxhog.models import lm_native
from mlxhog.models.ops.eager import ops_mlx, ops_torch
from mlxhog.models.ops.kernels import choose, resolve
from mlxhog.models.ops.native import adapter_mlx
from mlxhog.models.ops.native.adapter_torch import OPS as NATIVE_TORCH
from mlxhog.models.ops.native.custom_ops import ATTENTION, REGRESSION
from tests.models.operators import draw
from tests.models.sample import LARGE, V1, config, perturbed_params
from tests.pairs import each_of


@each_of("chunk_size", [4, 64])
def test_what_the_cell_saves_for_backward_grows_linearly_with_the_length(chunk_size):
    def saved(S):
        """Number of elements saved for backward; heads are wider than the chunk."""
        sizes = []
        inputs = [torch.tensor(draw(1, S, 2, 8)).requires_grad_() for _ in "qkv"]
        gates = [torch.tensor(draw(1, S, 2)) for _ in "if"]
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            NATIVE_TORCH.mlstm_cell(*inputs, *gates, chunk_size=chunk_size, eps=1e-6)
        return sum(sizes)

    assert saved(4096) - saved(2048) == 4 * (saved(1024) - saved(512))


def test_a_second_backward_through_the_loss_says_what_to_do():
    x, w = (torch.tensor(draw(n, 4)).requires_grad_() for n in (3, 5))
    labels = torch.tensor([0, 1, -100])
    for loss in (
        lambda: NATIVE_TORCH.capped_cross_entropy(x, labels, 30.0),
        lambda: NATIVE_TORCH.linear_cross_entropy(x, w, labels, 30.0),
    ):
        nats, _ = loss()
        torch.autograd.grad(nats, x, retain_graph=True)
        with pytest.raises(RuntimeError, match="run the forward again"):
            torch.autograd.grad(nats, x)


def test_a_view_of_a_row_major_array_is_its_memory_and_keeps_it_alive():
    for x in (mx.arange(6.0).reshape(2, 3) + 1, mx.arange(4), mx.array(3.0), mx.zeros((0, 4))):
        (view,) = adapter_mlx.views(x)  # which evaluates
        assert view.ctypes.data == np.frombuffer(memoryview(x), np.uint8).ctypes.data
        assert (view.shape, str(view.dtype)) == (x.shape, str(x.dtype).removeprefix("mlx.core."))
    (view,) = adapter_mlx.views(mx.arange(1000.0) * 2)  # the only reference to the array
    mx.eval([mx.full((1000,), 7.0) for _ in range(50)])  # which would take its memory
    np.testing.assert_array_equal(view, np.arange(1000.0) * 2)


def test_numbers_at_the_ends_of_float32_are_finite_and_nan_stays_in_its_row():
    q, k = draw(1, 4, 1, 3), draw(1, 4, 1, 3, seed=1)
    q[0, :3] *= np.array([1e-25, np.nan, 1e30], np.float32)[:, None, None]
    inputs = (q, k, -np.abs(draw(1, 4, 1, 1)), np.ones((1, 3), np.float32), None)
    (x, _), _ = REGRESSION.forward(*inputs, steps=20, save=False, threads=1)
    assert np.isfinite(x).all(-1).ravel().tolist() == [True, False, False, True]
    q = 1e3 * np.ones((1, 40, 1, 4), np.float32)  # scores too large to exponentiate
    q[0, ::2] *= -1
    (out,), _ = ATTENTION.forward(q, q, q, lengths=None, window=None, save=False, threads=1)
    np.testing.assert_allclose(out, q, rtol=1e-6)  # each sees only keys of its own sign


MODELS = {
    **LARGE,
    **V1,
    "biases": partial(config, use_bias=True, out_norm_bias=True),
    "three threads": partial(config, hidden_size=512, num_heads=4, vocab_size=3000),
}


def model(name):
    cfg = MODELS[name]()
    return cfg, perturbed_params(cfg, seed=1)


def native(cfg, params, *, threads=1, kernels="native"):
    return lm_native.decoder(cfg, params, framework="torch", kernels=kernels, threads=threads)


def decode(decoder, tokens):
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
    assert native(cfg, params, kernels="eager") is None


@each_of(
    ("framework", "kernels", "device", "message"),
    [
        ("mlx", "native", "gpu", "'native', which mlx:gpu cannot run; use auto"),
        ("torch", "metal", "cpu", "'metal', which torch:cpu cannot run; use auto"),
        ("torch", "fast", "cpu", "'fast'; choose one of auto, eager, native"),
    ],
)
def test_kernels_that_a_device_cannot_run_are_refused(framework, kernels, device, message):
    with pytest.raises(ConfigError, match=message):
        choose(framework, kernels, device)


def test_auto_is_native_on_a_cpu_and_metal_on_a_gpu_where_the_kernels_are_verified():
    for framework, plain, gpu in (("torch", ops_torch.OPS, "mps"), ("mlx", ops_mlx.OPS, "gpu")):
        assert choose(framework, "auto", gpu) is choose(framework, "eager", "cpu") is plain
        assert resolve(framework, "auto", gpu, metal_verified=True) == "metal"
        assert resolve(framework, "eager", gpu, metal_verified=True) == "eager"
        assert resolve(framework, "auto", "cpu", metal_verified=True) == "native"
