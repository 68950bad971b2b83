"""The convolution kernels agree with their references, the recorded output and float64 autograd."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mlxhog.errors import ShapeError
from mlxhog.metal.engine_reference import ReferenceEngine
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import Launch
from mlxhog.metal.kernels import conv
from tests.tolerances import METAL_CONV_F32, assert_close

Arrays = dict[str, Any]
GOLDEN = Path(__file__).parents[2] / "golden" / "xlstm" / "components.safetensors"
# B, S, CH and K: fewer positions than taps, one tap, one position, one channel, several blocks.
SHAPES = [(2, 9, 24, 4), (1, 2, 5, 4), (3, 7, 3, 1), (1, 1, 33, 3), (2, 130, 1, 4), (1, 64, 9, 7)]
shapes = pytest.mark.parametrize("shape", SHAPES)


def sample(shape: tuple[int, ...]) -> Arrays:
    B, S, CH, K = shape
    return dict(conv.sample_conv(np.random.default_rng(0), B=B, S=S, CH=CH, K=K))


def run(engine: Any, x: Arrays) -> tuple[Arrays, list[Launch]]:
    """x with the outputs of all five kernels, each fed by those before it, and the launches."""
    x, done = dict(x), []

    def launch(one: Launch) -> None:
        done.append(one)
        x.update(engine.run(one))

    launch(conv.conv_forward(x["x"], x["w"], x["bias"]))
    launch(conv.conv_bwd_pre(x["x"], x["w"], x["bias"], x["dy"]))
    launch(conv.conv_bwd_input(x["w"], x["dpre"]))
    launch(conv.conv_bwd_partial(x["x"], x["dpre"], K=x["w"].shape[-1]))
    launch(conv.conv_bwd_final(x["part"], S=x["x"].shape[1]))
    return x, done


def in_float64(x: Arrays) -> Arrays:
    given = {
        name: torch.tensor(x[name], dtype=torch.float64, requires_grad=True)
        for name in ("x", "w", "bias")
    }
    series, w, bias = given.values()
    padded = torch.nn.functional.pad(series.transpose(1, 2), (w.shape[-1] - 1, 0))
    pre = torch.nn.functional.conv1d(padded, w, bias, groups=w.shape[0])
    y = torch.nn.functional.silu(pre).transpose(1, 2)
    (y * torch.tensor(x["dy"])).sum().backward()
    gradients = {f"d{name}": value.grad for name, value in given.items()}
    return {
        "y": y.detach().numpy(),
        **{k: v.numpy() for k, v in gradients.items() if v is not None},
    }


@shapes
def test_every_kernel_agrees_with_its_reference(shim: HostEngine, shape: tuple[int, ...]) -> None:
    wanted, launches = run(ReferenceEngine(), sample(shape))
    for launch in launches:
        for name, value in shim.run(launch).items():
            largest = max(1.0, np.abs(wanted[name]).max())
            assert np.abs(value - wanted[name]).max() <= launch.kernel.rtol * largest, name


@shapes
def test_the_references_are_the_convolution_in_float64(shape: tuple[int, ...]) -> None:
    x = sample(shape)
    found, _ = run(ReferenceEngine(), x)
    for name, value in in_float64(x).items():
        assert_close(found[name], value, METAL_CONV_F32, label=name)


@shapes
def test_the_kernels_are_the_convolution_in_float64(
    shim: HostEngine, shape: tuple[int, ...]
) -> None:
    x = sample(shape)
    found, _ = run(shim, x)
    for name, value in in_float64(x).items():
        assert_close(found[name], value, METAL_CONV_F32, label=name)


def test_the_output_is_silu_of_the_recorded_convolution(shim: HostEngine) -> None:
    t = load_file(GOLDEN)
    found = shim.run(conv.conv_forward(t["x"], t["conv.weight"], t["conv.bias"]))["y"]
    pre = t["conv.y"].astype(np.float64)
    assert_close(found, pre / (1.0 + np.exp(-pre)), METAL_CONV_F32)


def test_no_output_depends_on_a_later_position(shim: HostEngine) -> None:
    x = sample((1, 12, 3, 4))
    before = shim.run(conv.conv_forward(x["x"], x["w"], x["bias"]))["y"]
    x["x"][:, 7:] += 1.0
    after = shim.run(conv.conv_forward(x["x"], x["w"], x["bias"]))["y"]
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any()


def test_gradients_of_weights_have_the_same_bits_in_every_run(shim: HostEngine) -> None:
    x = sample((3, 200, 5, 4))
    (first, _), (second, _) = run(shim, x), run(shim, x)
    np.testing.assert_array_equal(first["dw"], second["dw"])
    np.testing.assert_array_equal(first["dbias"], second["dbias"])


def test_arrays_that_do_not_belong_together_are_refused_by_name() -> None:
    x = sample((1, 4, 3, 2))
    with pytest.raises(ShapeError, match=r"conv_forward: bias has shape \(2,\), .* ask for \(3,\)"):
        conv.conv_forward(x["x"], x["w"], x["bias"][:2])
    with pytest.raises(ShapeError, match="conv_bwd_final: part has shape"):
        conv.conv_bwd_final(np.zeros((1, 2, 3, 4), np.float32), S=64)
