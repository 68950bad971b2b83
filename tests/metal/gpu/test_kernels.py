"""Every kernel agrees with its reference on the GPU, through MLX and through PyTorch."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlxhog.metal.engine import ReferenceEngine
from mlxhog.metal.kernels.adds import dense_axpy
from tools import sanitize


def disagreements(engine, launch):
    """Run a launch of NumPy arrays on an engine; name each array that differs from the reference.

    The tolerance is the kernel's own, or that of a fused multiply-add.
    """
    kernel = launch.kernel
    expected = {name: np.array(value)[()] for name, value in launch.inputs.items()}
    outputs = ReferenceEngine().run(replace(launch, inputs=expected))
    scalars = {argument.name for argument in kernel.inputs if argument.scalar}
    inputs = {
        name: value if name in scalars else engine.array(np.array(value))
        for name, value in launch.inputs.items()
    }
    result = engine.run(replace(launch, inputs=inputs))
    written = [argument.name for argument in kernel.inputs if argument.writes]
    pairs = [(name, inputs[name], expected[name]) for name in written]
    pairs += [(name, result[name], outputs[name]) for name in outputs]
    rtol = kernel.allowed(emulated=engine.emulated)
    return [
        f"{kernel.name}: {name} differs by {error:.2g}, allowed {rtol:.2g}"
        for name, actual, reference in pairs
        for error in [_error(engine.host(actual), reference)]
        if not error <= rtol
    ]


def _error(actual, expected):
    """The largest difference, relative to the largest value where that exceeds 1."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(actual, expected) else np.inf
    if not np.array_equal(np.isnan(actual), np.isnan(expected)):
        return np.inf
    difference = np.abs(actual.astype(np.float64) - expected)
    return float(
        np.nanmax(difference, initial=0.0) / max(1.0, np.nanmax(np.abs(expected), initial=0))
    )


SAMPLES = {
    f"{sample.kernel.name}-{sample.instance}".rstrip("-"): sample
    for sample in sanitize.samples(n=5000)
}


@pytest.mark.metal
@pytest.mark.parametrize("name", SAMPLES)
def test_a_kernel_agrees_with_its_reference_on_the_gpu(engine, name):
    assert disagreements(engine, SAMPLES[name]) == []


def test_the_comparison_with_references_finds_one_that_differs(host_engine):
    def doubled(arena, g, scale, n, offset, done):
        arena[offset : offset + n] += 2 * np.float32(scale) * g
        done[0] = 1

    launch = dense_axpy(np.zeros(64, np.float32), np.ones(32, np.float32), scale=1.0, offset=3)
    assert disagreements(host_engine("mps"), launch) == []
    kernel = replace(launch.kernel, reference=doubled)
    (message,) = disagreements(host_engine("mps"), replace(launch, kernel=kernel))
    assert message == "dense_axpy: arena differs by 0.5, allowed 0"


@pytest.mark.slow
@pytest.mark.parametrize("consumer", ["mlx", "mps"])
def test_every_kernel_agrees_with_its_reference_when_emulated(host_engine, consumer):
    engine = host_engine(consumer)
    assert [
        message for sample in SAMPLES.values() for message in disagreements(engine, sample)
    ] == []


def test_tests_on_the_gpu_run_there_and_leave_the_device_as_it_was(request, monkeypatch):
    chosen = [mx.Device(mx.cpu)]
    monkeypatch.setattr(mx, "default_device", lambda: chosen[-1])
    monkeypatch.setattr(mx, "set_default_device", chosen.append)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)

    def restored():
        assert chosen == [mx.cpu, mx.gpu, mx.cpu]

    request.addfinalizer(restored)  # runs after the fixture has ended
    request.getfixturevalue("metal_device")
    assert chosen == [mx.cpu, mx.gpu]
