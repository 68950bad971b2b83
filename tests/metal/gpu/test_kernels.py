"""Every kernel computes the same on the GPU, through MLX and PyTorch, as when emulated."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.metal.kernel import FUSED_RTOL
from tools import sanitize


def results(engine, launch):
    """The outputs of a launch of NumPy arrays, and the arrays that it writes, run on copies."""
    kernel = launch.kernel
    inputs = {
        argument.name: launch.inputs[argument.name]
        if argument.scalar
        else engine.array(np.array(launch.inputs[argument.name]))
        for argument in kernel.inputs
    }
    outputs = engine.run(replace(launch, inputs=inputs))
    outputs |= {
        argument.name: inputs[argument.name] for argument in kernel.inputs if argument.writes
    }
    return {name: np.array(engine.host(array)) for name, array in outputs.items()}


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
def test_a_kernel_computes_on_the_gpu_what_it_does_when_emulated(engine, host_engine, name):
    launch = SAMPLES[name]
    expected, actual = results(host_engine(), launch), results(engine, launch)
    rtol = max(launch.kernel.rtol, FUSED_RTOL)  # a GPU also flushes denormals, far below both
    assert not {each: error for each, x in expected.items()
                if not (error := _error(actual[each], x)) <= rtol}  # fmt: skip
