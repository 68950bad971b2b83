"""CPU adds to packed 16-bit floats: NumPy's rounding, no add lost, no NaN that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlxhog import _native
from tests.metal.shared import Shared, run, shared
from tests.pairs import each_of

Bits16 = NDArray[np.uint16]
Words = NDArray[np.uint32]
EXACT = {False: 2048, True: 256}  # largest count that a half and a bfloat hold exactly
WORDS = 64
ADDS = 100  # of every writer to every element
WRITERS = 2


def widened(bits: Bits16, *, bfloat: bool) -> NDArray[np.float32]:
    if bfloat:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def rounded(values: NDArray[np.float32], *, bfloat: bool) -> Bits16:
    """Round to nearest, ties to even; NaN stays a NaN."""
    if not bfloat:
        with np.errstate(all="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    up = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, up).astype(np.uint16)


def added(a: Bits16, b: Bits16, *, bfloat: bool) -> Bits16:
    """What one add should give, through the native kernel."""
    words = a.copy().view(np.uint32)
    assert _native.add_packed16(words, 0, b.copy().view(np.uint32), bfloat) == 0
    return words.view(np.uint16)


def assert_same(actual: Bits16, expected: Bits16, *, bfloat: bool) -> None:
    """Equal bits, or NaN on both sides."""
    nan = np.isnan(widened(expected, bfloat=bfloat))
    np.testing.assert_array_equal(np.isnan(widened(actual, bfloat=bfloat)), nan)
    np.testing.assert_array_equal(actual[~nan], expected[~nan])


@each_of("bfloat", [False, True], ids=["half", "bfloat"])
@each_of("seed", range(8))
def test_every_pattern_of_16_bits_is_added_and_rounded_as_by_numpy(bfloat: bool, seed: int) -> None:
    a = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    rng = np.random.default_rng(seed)
    for b in (rng.permutation(a), a ^ np.uint16(rng.integers(1, 64)), np.zeros_like(a)):
        with np.errstate(all="ignore"):  # among the patterns are infinities
            total = widened(a, bfloat=bfloat) + widened(b, bfloat=bfloat)
        assert_same(added(a, b, bfloat=bfloat), rounded(total, bfloat=bfloat), bfloat=bfloat)


@pytest.mark.parametrize("bfloat", [False, True], ids=["half", "bfloat"])
def test_ties_go_to_the_even_neighbour(bfloat: bool) -> None:
    most = EXACT[bfloat]
    values = np.array([most, most + 2, -most, -most - 2], np.float32)
    ones = np.array([1, 1, -1, -1], np.float32)
    actual = added(rounded(values, bfloat=bfloat), rounded(ones, bfloat=bfloat), bfloat=bfloat)
    expected = [most, most + 4, -most, -most - 4]
    np.testing.assert_array_equal(widened(actual, bfloat=bfloat), expected)


@pytest.mark.parametrize("bfloat", [False, True], ids=["half", "bfloat"])
def test_a_nan_is_added_to_once_and_leaves_its_neighbour_alone(bfloat: bool) -> None:
    start = rounded(np.array([np.nan, 1.0], np.float32), bfloat=bfloat)
    one = rounded(np.ones(2, np.float32), bfloat=bfloat)
    result = widened(added(start, one, bfloat=bfloat), bfloat=bfloat)
    assert np.isnan(result[0])
    assert result[1] == 2


def test_only_the_words_named_by_the_offset_change() -> None:
    words: Words = np.zeros(5, np.uint32)
    _native.add_packed16(words, 2, np.ones(4, np.float16).view(np.uint32), False)
    np.testing.assert_array_equal(words.view(np.float16), [0, 0, 0, 0, 1, 1, 1, 1, 0, 0])


def add_often(segment: Shared, bfloat: bool) -> None:
    ones = rounded(np.ones(2 * WORDS, np.float32), bfloat=bfloat).view(np.uint32)
    for _ in range(ADDS):
        assert _native.add_packed16(segment.floats.view(np.uint32), 0, ones, bfloat) == 0


@pytest.fixture
def segment() -> Iterator[Shared]:
    with shared(WORDS) as result:
        yield result


@pytest.mark.parametrize("bfloat", [False, True], ids=["half", "bfloat"])
def test_processes_that_add_at_once_lose_nothing(segment: Shared, bfloat: bool) -> None:
    assert WRITERS * ADDS <= EXACT[bfloat]
    run(add_often, [(segment, bfloat)] * WRITERS)
    actual = widened(segment.floats.view(np.uint16), bfloat=bfloat)
    np.testing.assert_array_equal(actual, np.full(2 * WORDS, WRITERS * ADDS))


@each_of(("offset", "n"), [(0, 5), (4, 1), (5, 0), (1, 4)])
def test_words_outside_the_array_are_refused(offset: int, n: int) -> None:
    words: Words = np.zeros(4, np.uint32)
    with pytest.raises(ValueError, match="do not fit the array of 4"):
        _native.add_packed16(words, offset, np.ones(n, np.uint32), False)
    assert not words.any()


@each_of(
    "delta",
    [np.ones(2, np.float32), np.ones(4, np.float16), np.ones(8, np.uint32)[::2]],
    ids=["float32", "unpacked", "strided"],
)
def test_other_dtypes_and_strides_are_refused(delta: Any) -> None:
    with pytest.raises(TypeError):
        _native.add_packed16(np.zeros(4, np.uint32), 0, delta, False)
