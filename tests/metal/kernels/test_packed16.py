"""Adds of half and bfloat16, two in a word: rounding, NaN, and what is no whole word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mlxhog.errors import ShapeError
from mlxhog.metal.engine import Engine
from mlxhog.metal.host.engine import HostEngine
from mlxhog.metal.kernels.packed16 import packed16_add, words
from tests.metal.kernels.numbers import SIZES, Array, assert_same_bits, counter, normal, odd
from tests.pairs import each_of

INSTANCES = ("half", "bfloat")
DTYPES = {"half": torch.float16, "bfloat": torch.bfloat16}


def bits16(x: Array, instance: str) -> Array:
    """float32 numbers in 16 bits, as torch rounds them."""
    rounded: Array = torch.from_numpy(x).to(DTYPES[instance]).view(torch.int16).numpy()
    return rounded.view(np.uint16)


def numbers(bits: Array, instance: str) -> Array:
    """The 16-bit numbers as float32."""
    value: Array = torch.from_numpy(bits.view(np.int16)).view(DTYPES[instance]).float().numpy()
    return value


def all_numbers() -> Array:
    return np.arange(1 << 16, dtype=np.uint16)


def assert_same_numbers(actual: Array, expected: Array, instance: str) -> None:
    assert_same_bits(numbers(actual, instance), numbers(expected, instance))


@pytest.mark.slow
@each_of("n", SIZES)
@each_of("instance", INSTANCES)
def test_a_sum_is_made_in_float32_and_rounded_to_nearest_even(
    engine: Engine, instance: str, n: int
) -> None:
    for offset in (0, 2, 34):
        arena = bits16(odd(2 * n + 40, seed=1), instance)
        g = bits16(odd(2 * n, seed=2), instance)
        expected = arena.copy()
        here = slice(offset, offset + 2 * n)
        with np.errstate(all="ignore"):
            total = numbers(arena[here], instance) + numbers(g, instance)
        expected[here] = bits16(total, instance)
        failures = counter()
        engine.run(packed16_add(words(arena), words(g), failures, offset=offset, instance=instance))
        assert_same_numbers(arena, expected, instance)
        assert not failures.any()


@each_of("instance", INSTANCES)
def test_every_16_bit_number_keeps_its_value_when_zero_is_added(
    engine: Engine, instance: str
) -> None:
    arena = all_numbers()
    engine.run(
        packed16_add(
            words(arena), np.zeros(1 << 15, np.uint32), counter(), offset=0, instance=instance
        )
    )
    with np.errstate(invalid="ignore"):
        expected = numbers(all_numbers(), instance) + np.float32(0)  # which turns -0 into 0
    assert_same_bits(numbers(arena, instance), expected)


@each_of("instance", INSTANCES)
def test_every_16_bit_number_rounds_as_torch_rounds_when_another_is_added(
    engine: Engine, instance: str
) -> None:
    rng = np.random.default_rng(0)
    arena, g = rng.permutation(all_numbers()), rng.permutation(all_numbers())
    with np.errstate(all="ignore"):
        expected = bits16(numbers(arena, instance) + numbers(g, instance), instance)
    engine.run(packed16_add(words(arena), words(g), counter(), offset=0, instance=instance))
    assert_same_numbers(arena, expected, instance)


@each_of("instance", INSTANCES)
def test_nan_ends_at_the_first_try(engine: Engine, instance: str) -> None:
    arena = bits16(np.full(32, np.nan, np.float32), instance)
    g, failures = bits16(np.ones(32, np.float32), instance), counter()
    engine.run(packed16_add(words(arena), words(g), failures, offset=0, instance=instance))
    assert np.isnan(numbers(arena, instance)).all()
    assert not failures.any()


@each_of("instance", INSTANCES)
def test_the_halves_of_a_word_do_not_carry_into_each_other(engine: Engine, instance: str) -> None:
    arena = bits16(np.zeros(16, np.float32), instance)
    g = bits16(np.tile(np.array([-1, 2**-10], np.float32), 8), instance)
    engine.run(packed16_add(words(arena), words(g), counter(), offset=0, instance=instance))
    np.testing.assert_array_equal(numbers(arena, instance), numbers(g, instance))


@each_of("instance", INSTANCES)
def test_chaos_fails_tries_without_failing_adds(
    consumer: str, host_engine: Callable[..., HostEngine], instance: str
) -> None:
    arena = bits16(np.zeros(16, np.float32), instance)
    g, failures = bits16(np.ones(16, np.float32), instance), counter()
    launch = packed16_add(words(arena), words(g), failures, offset=0, instance=instance)
    shim = host_engine(consumer, chaos=5, threads=1)
    shim.run(replace(launch, grid=(8, 200, 1), group=(8, 32, 1)))
    np.testing.assert_array_equal(numbers(arena, instance), 200)
    assert not failures.any()


@each_of("instance", INSTANCES)
def test_a_word_that_never_settles_is_counted_and_left_alone(
    host_engine: Callable[..., HostEngine], instance: str
) -> None:
    arena = bits16(np.zeros(16, np.float32), instance)
    g, failures = bits16(np.ones(16, np.float32), instance), counter()
    launch = packed16_add(words(arena), words(g), failures, offset=0, instance=instance)
    impatient = replace(launch.kernel, source=launch.kernel.source.replace("<T>", "<T, 1>"))
    shim = host_engine("mlx", chaos=5, threads=1)
    shim.run(replace(launch, kernel=impatient, grid=(8, 200, 1), group=(8, 32, 1)))
    assert 0 < failures[0] < 8 * 200
    assert numbers(arena, instance).sum() + 2 * float(failures[0]) == 16 * 200


def half(n: int) -> Array:
    return normal(n).astype(np.float16)


def add(offset: int = 0, instance: str = "half", n: int = 4) -> Any:
    return packed16_add(
        words(half(32)), words(half(n)), counter(), offset=offset, instance=instance
    )


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "odd count": (lambda: words(half(7)), "7 16-bit floats at .* pad them to an even count"),
    "odd address": (lambda: words(half(9)[1:]), "not whole 32-bit words"),
    "float32": (lambda: words(normal(8)), "float32.* expected C-contiguous 16-bit"),
    "strides": (lambda: words(half(16)[::2]), "not C-contiguous"),
    "odd offset": (lambda: add(offset=3), "offset 3 is inside a 32-bit word"),
    "negative odd offset": (lambda: add(offset=-1), "offset -1 is inside a 32-bit word"),
    "negative offset": (lambda: add(offset=-2), "-1 to 1 of the arena"),
    "past the end": (lambda: add(offset=30), "15 to 17 of the arena, which has 16"),
    "instance": (lambda: add(instance="float"), "no 16-bit float 'float'; choose from half, bf"),
    "small counter": (
        lambda: packed16_add(
            words(half(32)), words(half(4)), counter()[:7], offset=0, instance="half"
        ),
        "failures has shape",
    ),
}


@each_of("case", BAD)
def test_what_is_no_whole_word_of_the_arena_is_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(ShapeError, match=message):
        make()


@each_of("name", ["arena", "g"])
def test_another_dtype_is_refused_and_nothing_written(shim: HostEngine, name: str) -> None:
    arena, g = words(half(32)), words(half(32))
    before = arena.copy()
    launch = packed16_add(arena, g, counter(), offset=0, instance="half")
    wrong = launch.inputs[name].view(np.float32)
    with pytest.raises(ShapeError, match=f"packed16_add: {name}"):
        shim.run(replace(launch, inputs={**launch.inputs, name: wrong}))
    assert_same_bits(arena, before)
