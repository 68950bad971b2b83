"""What the emulation refuses; that it computes as Metal does, the kernels' own tests show."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import MetalError, ShapeError
from tests.metal.host import probes
from tests.metal.host.probes import on
from tests.pairs import each_of


def test_a_group_of_more_than_1024_threads_is_refused(shim):
    with pytest.raises(MetalError, match=r"\(2048, 1, 1\) is 2048 threads; a GPU runs 1 to 1024"):
        shim.run(on(probes.GROUP_SUM, np.zeros(4096, np.float32), group=(2048, 1, 1)))


def test_a_read_only_array_cannot_be_written(shim):
    shared = np.zeros(16, np.float32)
    shared.flags.writeable = False
    with pytest.raises(ShapeError, match="shared is read-only; the kernel writes it in place"):
        shim.run(probes.count(probes.ATOMIC_COUNT, shared, 16))


def test_threads_at_two_barriers_are_reported_with_both_places(shim):
    x = np.ones(64, np.float32)
    with pytest.raises(MetalError, match=r"divergent barrier: thread 32 .*meeting\.h:26.*h:24"):
        shim.run(on(probes.DIVERGENT, x, returns=0))


def test_a_barrier_that_others_never_reach_is_reported(shim):
    x = np.ones(64, np.float32)
    with pytest.raises(
        MetalError, match=r"divergent barrier: .*meeting\.h:24, 32 of the group's 64 threads have"
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
