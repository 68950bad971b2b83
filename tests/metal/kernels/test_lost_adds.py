"""No atomic kernel loses one of 10^5 adds, whatever the schedule.

Each kernel adds 1 to few elements many times at once: a launch is repeated along the axis of its
grid that the kernel does not look at.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from mlxhog.metal.kernel import Launch
from mlxhog.metal.kernels import adds, steps
from mlxhog.metal.kernels.step_rules import FLAG_FLOATS, momentum_hp, sgd_hp
from mlxhog.metal.registry import KERNELS
from tests.metal.kernels.numbers import Array, counter

ADDS = 128_000
N = 64  # elements, of which each counts exactly up to 2^24

# AdamW with beta1 = 0 and m / (0 * sqrt(v) + 1) = -1, so that w gains 1; v = 1 * v + 1 * g^2.
# What a shared m loses is counted by `muon_direction_shared`.
COUNTING = np.array([0, 1, 0, 1, 1, 1, 0, 1], np.float32)


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


def scatter_add_rows():
    arena, rows = zeros(), np.arange(8, dtype=np.int32)
    g = ones().reshape(8, 8)
    return Count(adds.scatter_add_rows(arena, rows, g, scale=1.0, offset=0, height=8), (arena,))


MOMENTUM = momentum_hp(lr=1, momentum=0, nesterov=False, weight_decay=0)
RULES = {
    "sgd": (steps.SGD, sgd_hp(lr=1, weight_decay=0)),
    "momentum": (steps.MOMENTUM, MOMENTUM),
    "adam": (steps.ADAM, COUNTING),
    "adam_shared": (steps.ADAM_SHARED, COUNTING),
    "sgd_recorded": (steps.SGD_RECORDED, sgd_hp(lr=1, weight_decay=0)),
    "adam_shared_recorded": (steps.ADAM_SHARED_RECORDED, COUNTING),
}


def step(name, *, rows):
    rule, hp = RULES[name]
    x = {name: zeros() for name in ("arena", *rule.written)}
    x |= {"failures": counter()} if rule.shared else {}
    rates = {"decays": np.zeros(2, np.uint8), "hp": hp, "offset": 0}
    if rows:
        x |= {"rows": np.arange(8, dtype=np.int32), "g": -ones().reshape(8, 8)}
        launch = rule.rows(x, **rates, height=8)
    else:
        launch = rule.dense({**x, "g": -ones()}, **rates)
    return Count(launch, (x["arena"], *(x[name] for name in rule.shared if name == "v")))


def muon_direction_shared():
    m, hp = zeros(), np.array([1, 1, 0, 1, 0, 0, 0, 0], np.float32)  # m = 1 * m + 1 * g
    x = {"m": m, "failures": counter(), "g": ones()}
    return Count(steps.muon_direction(x, hp=hp, offset=0), (m,))


def channel_scale_apply():
    arena, g = zeros(), ones().reshape(8, 8)
    launch = steps.channel_scale_apply(arena, g, ones(8), axis=0, coef=1.0, offset=0)
    return Count(launch, (arena,))


CASES = {
    "dense_axpy": dense_axpy,
    "scatter_add_rows": scatter_add_rows,
    "muon_direction_shared": muon_direction_shared,
    "channel_scale_apply": channel_scale_apply,
    **{f"{name}_apply": partial(step, name, rows=False) for name in RULES},
    **{
        f"{name}_apply_rows": partial(step, name, rows=True)
        for name, (rule, _) in RULES.items()
        if not rule.records
    },
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
    assert "failures" not in launch.inputs or not launch.inputs["failures"].any()


def test_every_kernel_that_writes_shared_memory_is_held_to_it():
    writers = {
        f"{name} {instance}".rstrip()
        for name, kernel in KERNELS.items()
        for instance in kernel.instances or ("",)
        if any(argument.writes for argument in kernel.inputs)
    }
    own = "muon_direction"  # writes nothing but its worker's mean
    assert writers - {"racy_axpy", own} == set(CASES)


def own_steps(seed, arena, shim, rule, hp):
    """The moments of a worker after some steps on an arena that another worker writes, too."""
    moments = {name: zeros(len(arena)) for name in rule.written}
    rates = {"decays": np.zeros(len(arena) // FLAG_FLOATS, np.uint8), "hp": hp, "offset": 0}
    for step in range(STEPS):
        g = np.random.default_rng((seed, step)).integers(-9, 10, len(arena)).astype(np.float32)
        shim.run(rule.dense({"arena": arena, "g": g, **moments}, **rates))
    return moments


STEPS, WORKERS = 12, 2
OWN = {
    # Every number is whole, so that sums are exact in any order.
    "momentum": momentum_hp(lr=1, momentum=1, nesterov=False, weight_decay=0),
    "adam": np.array([0, 1, 1, 1, 1, 1, 0, 1], np.float32),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_workers_at_once_move_their_own_moments_as_alone_and_lose_no_step(host_engine, name):
    rule, hp = RULES[name][0], OWN[name]
    together, apart = zeros(4096), zeros(4096)
    shims = [host_engine("mlx", chaos=seed, threads=2) for seed in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        moments = [
            pool.submit(own_steps, seed, together, shim, rule, hp)
            for seed, shim in enumerate(shims)
        ]
    for seed, moved in enumerate(moments):
        alone = own_steps(seed, apart, host_engine("mlx", threads=1), rule, hp)
        for moment, values in moved.result().items():
            np.testing.assert_array_equal(values, alone[moment], err_msg=moment)
    np.testing.assert_array_equal(together, apart)
