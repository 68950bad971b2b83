"""The convolution kernels agree with the recorded output and float64 autograd."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import conv
from tests.pairs import each_of
from tests.tolerances import METAL_CONV_F32, assert_close

Arrays = dict[str, Any]
GOLDEN = Path(__file__).parents[2] / "golden" / "xlstm" / "components.safetensors"
# B, S, CH, K and P: fewer positions than taps, one tap, one position, one channel, several blocks,
# inputs before the first output, as many as the taps see and fewer.
SHAPES = [
    (2, 9, 24, 4, 0),
    (1, 2, 5, 4, 0),
    (3, 7, 3, 1, 0),
    (1, 1, 33, 3, 0),
    (2, 130, 1, 4, 0),
    (1, 64, 9, 7, 0),
    (2, 9, 24, 4, 3),
    (1, 1, 5, 4, 3),
    (1, 70, 3, 5, 2),
]
shapes = each_of("shape", SHAPES)
packed = each_of("packed", [False, True])


def sample(shape, packed=False):
    """Inputs; packed, each output sees a random number of positions before its own."""
    B, S, CH, K, P = shape
    rng = np.random.default_rng(0)
    x = dict(conv.sample_conv(rng, B=B, S=S, CH=CH, K=K, P=P))
    return x | {"back": rng.integers(0, K, (B, S), np.int32)} if packed else x


def run(engine, x):
    """x with the outputs of all five kernels, each fed by those before it."""
    x, S = dict(x), x["dy"].shape[1]

    def launch(one):
        x.update(engine.run(one))

    launch(conv.conv_forward(x["x"], x["w"], x["bias"], x["back"], silu=True))
    launch(conv.conv_bwd_pre(x["x"], x["w"], x["bias"], x["back"], x["dy"]))
    launch(conv.conv_bwd_input(x["w"], x["back"], x["dpre"], P=x["x"].shape[1] - S))
    launch(conv.conv_bwd_partial(x["x"], x["back"], x["dpre"], K=x["w"].shape[-1]))
    launch(conv.conv_bwd_final(x["part"], S=S))
    return x


def in_float64(x):
    inputs = {
        name: torch.tensor(x[name], dtype=torch.float64, requires_grad=True)
        for name in ("x", "w", "bias")
    }
    series, w, bias = inputs.values()
    S, K = x["dy"].shape[1], w.shape[-1]
    padded = torch.nn.functional.pad(series, (0, 0, K - 1, 0))
    windows = padded.unfold(1, K, 1)[:, -S:]  # (B, S, CH, K), the position itself last
    visible = torch.tensor(x["back"])[:, :, None, None] >= torch.arange(K - 1, -1, -1)
    pre = bias + torch.where(visible, windows * w[:, 0], 0.0).sum(-1)
    y = torch.nn.functional.silu(pre)
    (y * torch.tensor(x["dy"])).sum().backward()
    gradients = {f"d{name}": value.grad for name, value in inputs.items()}
    return {
        "y": y.detach().numpy(),
        "pre": pre.detach().numpy(),
        **{k: v.numpy() for k, v in gradients.items() if v is not None},
    }


@shapes
@packed
def test_the_kernels_are_the_convolution_in_float64(shim, shape, packed):
    x = sample(shape, packed)
    actual = run(shim, x)
    expected = in_float64(x)
    for name in ("y", "dx", "dw", "dbias"):
        assert_close(actual[name], expected[name], METAL_CONV_F32, label=name)


@shapes
@packed
def test_silu_can_be_left_out(shim, shape, packed):
    x = sample(shape, packed)
    launch = conv.conv_forward(x["x"], x["w"], x["bias"], x["back"], silu=False)
    assert_close(shim.run(launch)["y"], in_float64(x)["pre"], METAL_CONV_F32)


def test_no_output_sees_further_than_the_taps_and_the_first_input(shim):
    x = sample((2, 9, 4, 4, 2))
    expected = shim.run(conv.conv_forward(x["x"], x["w"], x["bias"], x["back"], silu=True))["y"]
    for far in (2**31 - 1, -1):
        back = np.full_like(x["back"], far)
        actual = shim.run(conv.conv_forward(x["x"], x["w"], x["bias"], back, silu=True))["y"]
        np.testing.assert_array_equal(actual, expected)


def test_the_output_is_silu_of_the_recorded_convolution(shim):
    t = load_file(GOLDEN)
    back = np.full(t["x"].shape[:2], 3, np.int32)
    arguments = (t["x"], t["conv.weight"], t["conv.bias"], back)
    actual = shim.run(conv.conv_forward(*arguments, silu=True))["y"]
    pre = t["conv.y"].astype(np.float64)
    assert_close(actual, pre / (1.0 + np.exp(-pre)), METAL_CONV_F32)


def test_no_output_depends_on_a_later_position(shim):
    x = sample((1, 12, 3, 4, 0))
    before = shim.run(conv.conv_forward(x["x"], x["w"], x["bias"], x["back"], silu=True))["y"]
    x["x"][:, 7:] += 1.0
    after = shim.run(conv.conv_forward(x["x"], x["w"], x["bias"], x["back"], silu=True))["y"]
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any()


def test_gradients_of_weights_have_the_same_bits_in_every_run(shim):
    x = sample((3, 200, 5, 4, 0))
    first, second = run(shim, x), run(shim, x)
    np.testing.assert_array_equal(first["dw"], second["dw"])
    np.testing.assert_array_equal(first["dbias"], second["dbias"])


def test_arrays_that_do_not_belong_together_are_refused_by_name():
    x = sample((1, 4, 3, 2, 0))
    with pytest.raises(ShapeError, match=r"conv_forward: bias has shape \(2,\), .* require \(3,\)"):
        conv.conv_forward(x["x"], x["w"], x["bias"][:2], x["back"], silu=True)
    with pytest.raises(ShapeError, match=r"x has shape \(1, 3, 3\), .* require \(1, 4, 3\)"):
        conv.conv_forward(x["x"][:, :3], x["w"], x["bias"], x["back"], silu=True)
    with pytest.raises(ShapeError, match="conv_bwd_final: part has shape"):
        conv.conv_bwd_final(np.zeros((1, 2, 3, 4), np.float32), S=64)
