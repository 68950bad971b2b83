"""What a GPU can import without a copy, and the proof that an import is one."""

import ctypes
import mmap

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.layout import PAGE
from mlxhog.errors import EnvironmentLacks, ShapeError
from mlxhog.metal.engines import MAX_ELEMENTS, wrappable


@pytest.fixture
def arena():
    with Arena.create(plan({}, max_workers=3, private=("m",), n_tickets=1)) as arena:
        yield arena


def paged(n_bytes, page=PAGE):
    """Fresh bytes whose address is a multiple of `page`, whatever the page of this system."""
    memory = np.frombuffer(mmap.mmap(-1, n_bytes + page), np.uint8)
    start = -memory.ctypes.data % page
    return memory[start : start + n_bytes]


def test_every_float_segment_of_an_arena_is_imported_whole_and_as_one_array(arena):
    for name in ("params", "m.1", "m.3"):
        only = wrappable(arena.segment(name))
        assert np.shares_memory(only, arena.segment(name))
        assert only.size == arena.layout.n_floats


def test_only_flat_memory_of_whole_pages_is_imported_and_others_are_told_the_way_out():
    memory = paged(3 * PAGE)
    floats, inside = memory.view(np.float32), memory[4096 : 4096 + PAGE]
    assert wrappable(memory, page=PAGE) is memory
    assert wrappable(inside, page=4096) is inside, "what fits pages of 4 KiB"
    for array, error, message in (
        (inside, EnvironmentLacks, r"starts at 0x\w+, 4,096 bytes past a page of 16,384"),
        (memory[: PAGE + 128], EnvironmentLacks, "has 16,512 bytes, 128 .*--read snapshot"),
        *(
            (array, ShapeError, "whole segment, flat and contiguous")
            for array in (floats.reshape(2, -1), floats[::2], floats[:0], floats[::-1])
        ),
    ):
        with pytest.raises(error, match=message):
            wrappable(array, page=PAGE)


def test_an_arena_beyond_31_bits_of_elements_is_refused_with_the_way_out():
    n = MAX_ELEMENTS + 1 + PAGE // 4
    address = paged(PAGE).ctypes.data  # never touched: only addresses and sizes are looked at
    huge = np.ctypeslib.as_array((ctypes.c_float * n).from_address(address))
    with pytest.raises(EnvironmentLacks, match=r"2,147,487,744 elements.*--gpu-write cpu"):
        wrappable(huge, page=PAGE)


def test_every_worker_slot_checks_on_a_float_of_its_own_that_nothing_else_uses(arena):
    places = [arena.layout.self_check(slot) for slot in range(1, 5)]
    probe = arena.layout.probe
    assert len(set(places)) == 4
    assert min(places) >= probe.offset + probe.size
    assert max(places) < arena.params.size
