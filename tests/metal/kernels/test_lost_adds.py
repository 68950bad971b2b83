"""No atomic kernel loses one of ten million adds, whatever the schedule.

Each kernel adds 1 to few elements many times at once: a launch is repeated along the axis of its
grid that the kernel does not look at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernel import Launch
from mlxhog.metal.kernels import adds, packed16, reduce, row_steps, steps, versions
from mlxhog.metal.kernels.hyper import momentum_hp, sgd_hp
from mlxhog.metal.kernels.packed16_reference import from_bfloat_bits
from mlxhog.metal.registry import KERNELS
from tests.metal.kernels.numbers import Array, counter

ADDS = 10_000_000
N = 64  # elements, of which each counts exactly up to 2^24

# AdamW with beta1 = 0 and m / (0 * sqrt(v) + 1) = -1, so that w gains 1; v = 1 * v + 1 * g^2.
COUNTING = np.array([0, 1, 0, 1, 1, 1, 0, 1], np.float32)


@dataclass(frozen=True)
class Count:
    """A launch that adds 1 to each of `counted`, and how often it may be repeated exactly."""

    launch: Launch
    counted: tuple[Array, ...]
    times: int = ADDS // N
    counts_all: bool = False  # one element counts for all N


def zeros(n: int = N) -> Array:
    return np.zeros(n, np.float32)


def ones(n: int = N) -> Array:
    return np.ones(n, np.float32)


def dense_axpy() -> Count:
    arena = zeros()
    return Count(adds.dense_axpy(arena, ones(), scale=1.0, offset=0), (arena,))


def dense_axpy_nz() -> Count:
    arena, made = zeros(), counter()
    return Count(adds.dense_axpy_nz(arena, ones(), made, scale=1.0, offset=0), (arena,))


def scatter_add_rows() -> Count:
    arena, rows = zeros(), np.arange(8, dtype=np.int32)
    g = ones().reshape(8, 8)
    return Count(adds.scatter_add_rows(arena, rows, g, scale=1.0, offset=0, height=8), (arena,))


def packed16_add(instance: str, one: int, most: int) -> Count:
    n = -(-ADDS // most) + 1 & ~1
    arena, g = np.zeros(n, np.uint16), np.full(n, one, np.uint16)
    launch = packed16.packed16_add(
        packed16.words(arena), packed16.words(g), counter(), offset=0, instance=instance
    )
    return Count(launch, (arena,), times=most)


def rates(hp: Array) -> dict[str, Any]:
    return {"decays": np.zeros(2, np.uint8), "hp": hp, "offset": 0}


def sgd_apply() -> Count:
    arena = zeros()
    return Count(steps.sgd_apply(arena, -ones(), **rates(sgd_hp(lr=1, weight_decay=0))), (arena,))


MOMENTUM = momentum_hp(lr=1, momentum=0, nesterov=False, weight_decay=0)


def momentum_apply() -> Count:
    arena = zeros()
    return Count(steps.momentum_apply(arena, -ones(), zeros(), **rates(MOMENTUM)), (arena,))


def adam_apply() -> Count:
    arena = zeros()
    return Count(steps.adam_apply(arena, -ones(), zeros(), zeros(), **rates(COUNTING)), (arena,))


def adam_shared_apply() -> Count:
    arena, v = zeros(), zeros()
    launch = steps.adam_shared_apply(arena, v, counter(), -ones(), zeros(), **rates(COUNTING))
    return Count(launch, (arena, v))


def channel_scale_apply() -> Count:
    arena, g = zeros(), ones().reshape(8, 8)
    launch = steps.channel_scale_apply(arena, g, ones(8), axis=0, coef=1.0, offset=0)
    return Count(launch, (arena,))


def by_rows(front: Callable[..., Launch], hp: Array, *state: Array, **more: Any) -> Launch:
    rows, g = np.arange(8, dtype=np.int32), -ones().reshape(8, 8)
    return front(rows=rows, g=g, **more, **rates(hp), height=8)


def sgd_apply_rows() -> Count:
    arena = zeros()
    hp = sgd_hp(lr=1, weight_decay=0)
    return Count(by_rows(row_steps.sgd_apply_rows, hp, arena=arena), (arena,))


def momentum_apply_rows() -> Count:
    arena = zeros()
    launch = by_rows(row_steps.momentum_apply_rows, MOMENTUM, arena=arena, m=zeros())
    return Count(launch, (arena,))


def adam_apply_rows() -> Count:
    arena = zeros()
    launch = by_rows(row_steps.adam_apply_rows, COUNTING, arena=arena, m=zeros(), v=zeros())
    return Count(launch, (arena,))


def adam_shared_apply_rows() -> Count:
    arena, v = zeros(), zeros()
    more = {"arena": arena, "v": v, "failures": counter(), "m": zeros()}
    return Count(by_rows(row_steps.adam_shared_apply_rows, COUNTING, **more), (arena, v))


def version_bump() -> Count:
    counters = np.zeros(N, np.uint32)
    return Count(versions.version_bump(counters, np.arange(N, dtype=np.int32)), (counters,))


def nonfinite_count() -> Count:
    found = counter()
    launch = reduce.nonfinite_count(np.full(N, np.nan, np.float32), found)
    return Count(launch, (found[:1],), counts_all=True)


CASES: dict[str, Callable[[], Count]] = {
    "dense_axpy": dense_axpy,
    "dense_axpy_nz": dense_axpy_nz,
    "scatter_add_rows": scatter_add_rows,
    "packed16_add half": lambda: packed16_add("half", 0x3C00, 2048),
    "packed16_add bfloat": lambda: packed16_add("bfloat", 0x3F80, 256),
    "sgd_apply": sgd_apply,
    "momentum_apply": momentum_apply,
    "adam_apply": adam_apply,
    "adam_shared_apply": adam_shared_apply,
    "channel_scale_apply": channel_scale_apply,
    "sgd_apply_rows": sgd_apply_rows,
    "momentum_apply_rows": momentum_apply_rows,
    "adam_apply_rows": adam_apply_rows,
    "adam_shared_apply_rows": adam_shared_apply_rows,
    "version_bump": version_bump,
    "nonfinite_count": nonfinite_count,
}


def repeated(launch: Launch, times: int) -> Launch:
    """The launch, `times` over along the last axis of its grid."""
    x, y, _ = launch.grid
    if y > 1:
        return replace(launch, grid=(x, y, times), group=(8, 8, 4))
    return replace(launch, grid=(x, times, 1), group=(min(x, N), 4, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_million_adds_under_chaos_all_arrive(
    host_engine: Callable[..., HostEngine], name: str
) -> None:
    count = CASES[name]()
    shim = host_engine("mlx", chaos=11, threads=4)
    launch = repeated(count.launch, count.times)
    assert np.prod(launch.grid, dtype=np.int64) * (2 if launch.instance else 1) >= ADDS
    shim.run(launch)
    wanted = count.times * (N if count.counts_all else 1)
    for array in count.counted:
        np.testing.assert_array_equal(numbers(array, launch.instance), wanted)
    inputs = launch.inputs
    assert "failures" not in inputs or not inputs["failures"].any()
    assert "added" not in inputs or inputs["added"][0] == count.times * N


def numbers(array: Array, instance: str) -> Array:
    """16-bit floats as numbers; others as they are."""
    if instance == "half":
        return array.view(np.float16)
    return from_bfloat_bits(array) if instance == "bfloat" else array


def test_every_kernel_that_writes_shared_memory_is_held_to_it() -> None:
    writers = {
        f"{name} {instance}".rstrip()
        for name, kernel in KERNELS.items()
        for instance in kernel.instances or ("",)
        if any(argument.writes for argument in kernel.inputs)
    }
    assert writers - {"racy_axpy"} == set(CASES)
