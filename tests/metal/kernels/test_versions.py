"""Version counters of blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import ShapeError
from mlxhog.metal.engine import Engine
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernels.adds import version_bump
from tests.metal.kernels.numbers import SIZES, Array, assert_same_bits, counter


def blocks(*numbers: int) -> Array:
    return np.array(numbers, np.int32)


@pytest.mark.parametrize("n", SIZES)
def test_a_block_counts_every_bump_also_repeated_ones(engine: Engine, n: int) -> None:
    bumped = np.random.default_rng(n).integers(0, 100, n).astype(np.int32)
    counters = np.arange(100, dtype=np.uint32)
    wanted = counters + np.bincount(bumped, minlength=100).astype(np.uint32)
    done = engine.run(version_bump(counters, bumped))["done"]
    assert_same_bits(counters, wanted)
    assert (done == 1).all()


def test_counters_go_round_at_2_to_the_32(engine: Engine) -> None:
    counters = np.full(8, 2**32 - 1, np.uint32)
    engine.run(version_bump(counters, blocks(3)))
    assert counters[3] == 0
    assert (np.delete(counters, 3) == 2**32 - 1).all()


def test_blocks_that_python_cannot_see_are_left_out_and_reported(engine: Engine) -> None:
    counters = counter()
    launch = version_bump(counters, blocks(0, 0, 0, 0))
    unknown = blocks(-1, 8, 7, np.iinfo(np.int32).min)
    done = engine.run(replace(launch, inputs={**launch.inputs, "blocks": unknown}))["done"]
    assert done.tolist() == [0, 0, 1, 0]
    assert counters.tolist() == [0] * 7 + [1]


@pytest.mark.parametrize("wrong", [blocks(0, 8), blocks(-1)])
def test_a_block_without_a_counter_is_refused(wrong: Array) -> None:
    with pytest.raises(ShapeError, match="there are counters 0 to 7"):
        version_bump(counter(), wrong)


def test_counters_that_no_kernel_can_write_are_refused() -> None:
    with pytest.raises(ShapeError, match="counters has shape"):
        version_bump(counter()[:7], blocks(0))


def test_another_dtype_is_refused_and_nothing_counted(shim: HostEngine) -> None:
    counters = counter()
    launch = version_bump(counters, blocks(1))
    wide = launch.inputs["blocks"].astype(np.int64)
    with pytest.raises(ShapeError, match="version_bump: blocks"):
        shim.run(replace(launch, inputs={**launch.inputs, "blocks": wide}))
    assert not counters.any()
