"""No atomic kernel loses one of 10^5 adds, whatever the schedule.

Each kernel adds 1 to few elements many times at once: a launch is repeated along the axis of its
grid that the kernel does not look at.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from mlxhog.metal.kernel import Launch
from mlxhog.metal.kernels import adds
from mlxhog.metal.registry import KERNELS
from tests.metal.kernels.numbers import Array

ADDS = 128_000
N = 64  # elements, of which each counts exactly up to 2^24


@dataclass(frozen=True)
class Count:
    """A launch that adds 1 to each of `counted`, and how often it may be repeated exactly."""

    launch: Launch
    counted: tuple[Array, ...]
    times: int = ADDS // N


def zeros(n=N):
    return np.zeros(n, np.float32)


def ones(n=N):
    return np.ones(n, np.float32)


def dense_axpy():
    arena = zeros()
    return Count(adds.dense_axpy(arena, ones(), scale=1.0, offset=0), (arena,))


RATES = {
    "decays": np.zeros(N // adds.FLAG_FLOATS, np.uint8),
    "hp": np.array([1, 1, 0, 0] * 2, np.float32),
    "offset": 0,
}


def step(*recorded):
    x = {name: zeros() for name in ("arena", *recorded)}
    return Count(adds.step({**x, "g": -ones()}, **RATES), (x["arena"],))


def step_rows():
    x = {"arena": zeros(), "rows": np.arange(8, dtype=np.int32), "g": -ones().reshape(8, 8)}
    return Count(adds.step(x, **RATES, height=8), (x["arena"],))


CASES = {
    "dense_axpy": dense_axpy,
    "step": step,
    "step_recorded": partial(step, "last", "prev"),
    "step_rows": step_rows,
}


def repeated(launch, times):
    """The launch, `times` over along the last axis of its grid."""
    x, y, _ = launch.grid
    if y > 1:
        return replace(launch, grid=(x, y, times), group=(8, 8, 4))
    return replace(launch, grid=(x, times, 1), group=(min(x, N), 4, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_hundred_thousand_adds_under_chaos_all_arrive(host_engine, name):
    count = CASES[name]()
    shim = host_engine("mlx", chaos=11, threads=4)
    launch = repeated(count.launch, count.times)
    assert np.prod(launch.grid, dtype=np.int64) >= ADDS
    shim.run(launch)
    for array in count.counted:
        np.testing.assert_array_equal(array, count.times)


def test_every_kernel_that_writes_shared_memory_is_held_to_it():
    writers = {
        f"{name} {instance}".rstrip()
        for name, kernel in KERNELS.items()
        for instance in kernel.instances or ("",)
        if any(argument.writes for argument in kernel.inputs)
    }
    assert writers == set(CASES)
