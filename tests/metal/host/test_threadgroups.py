"""Threads of a group meet at barriers and in simd-group functions, or the launch says why not."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import MetalError
from tests.metal.host import probes
from tests.metal.host.probes import on
from tests.pairs import each_of


@each_of("n", [256, 1, 31, 33, 300, 2049])
def test_threads_of_a_group_share_sums_across_barriers(shim, n):
    x = np.random.default_rng(n).integers(0, 100, n).astype(np.float32)
    y = shim.run(on(probes.GROUP_SUM, x))["y"]
    for start in range(0, n, 256):
        assert (y[start : start + 256] == x[start : start + 256].sum()).all()


@pytest.mark.parametrize("n", [32, 64, 40])
def test_simd_functions_see_the_existing_lanes_of_their_simd_group(shim, n):
    x = np.random.default_rng(n).integers(1, 9, n).astype(np.float32)
    sums, most, prefix = shim.run(on(probes.SIMD_FUNCTIONS, x, width=3))["y"].reshape(n, 3).T
    for start in range(0, n, 32):
        lanes, here = x[start : start + 32], slice(start, start + 32)
        assert (sums[here] == lanes.sum()).all()
        assert (most[here] == lanes.max()).all()
        np.testing.assert_array_equal(prefix[here], np.cumsum(lanes))


@pytest.mark.slow
def test_a_simdgroup_multiplies_matrices_of_8_x_8(shim):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (2, 8, 10)).astype(np.float32)
    y = shim.run(on(probes.MATRIX_PRODUCT, x.reshape(-1), n=32, width=2))["y"]
    np.testing.assert_array_equal(y.reshape(8, 8), 2 + x[0, :, :8] @ x[1, :, :8].T)


def test_threads_at_two_barriers_are_reported_with_both_places(shim):
    x = np.ones(64, np.float32)
    with pytest.raises(MetalError, match=r"divergent barrier: thread 32 .*meeting\.h:35.*h:33"):
        shim.run(on(probes.DIVERGENT, x, returns=0))


def test_a_barrier_that_others_never_reach_is_reported(shim):
    x = np.ones(64, np.float32)
    with pytest.raises(
        MetalError, match=r"divergent barrier: .*meeting\.h:33, 32 of the group's 64 threads have"
    ):
        shim.run(on(probes.DIVERGENT, x, returns=1))
    assert shim.run(on(probes.GROUP_SUM, x))["y"][0] == 64, "the process goes on"


@each_of(
    ("kernel", "call"), [(probes.GROUP_SUM, "simd_sum"), (probes.DIVERGENT, "threadgroup_barrier")]
)
def test_meeting_is_refused_unless_the_kernel_declares_it(shim, kernel, call):
    scalars = {"returns": 1} if kernel is probes.DIVERGENT else {}
    launch = on(replace(kernel, lockstep=False), np.ones(64, np.float32), **scalars)
    with pytest.raises(
        MetalError, match=rf"{call} at .*meeting\.h:\d+ in a kernel .*lockstep=True"
    ):
        shim.run(launch)


def test_threadgroup_memory_is_poisoned_for_every_group(shim):
    x = np.ones(256, np.float32)
    y = shim.run(on(probes.UNWRITTEN, x, group=(64, 1, 1)))["y"].reshape(4, 64)
    assert (y[:, 0] == 1).all()
    assert np.isnan(y[:, 1:]).all()
