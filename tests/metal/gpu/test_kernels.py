"""Every kernel computes the same on the GPU, through MLX and PyTorch, as when emulated."""

import pytest

from mlxhog.metal.kernel import FUSED_RTOL
from tests.metal.test_engines import assert_same
from tools import sanitize

SAMPLES = {
    f"{sample.kernel.name}-{sample.instance}".rstrip("-"): sample
    for sample in sanitize.samples(n=5000)
}


@pytest.mark.metal
@pytest.mark.parametrize("name", SAMPLES)
def test_a_kernel_computes_on_the_gpu_what_it_does_when_emulated(engine, host_engine, name):
    launch = SAMPLES[name]
    # a GPU also flushes denormals, far below the tolerance
    assert_same(engine, host_engine(), launch, max(launch.kernel.rtol, FUSED_RTOL))
