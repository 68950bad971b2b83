"""Adds to the flat arena, and steps: values by their bits, no add lost, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import adds
from mlxhog.metal.registry import KERNELS
from tests.pairs import each_of

SCALE = np.float32(-0.3)
# Around 8 (MLX's small arrays), a threadgroup and a block, and larger than all with an odd rest.
SIZES = (0, 1, 2, 7, 8, 9, 255, 256, 257, 4095, 4097, 1_000_003)

INFO = np.finfo(np.float32)
ODDITIES = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, INFO.smallest_subnormal, -INFO.smallest_subnormal,
     INFO.tiny / 2, INFO.max, -INFO.max],
    np.float32,
)  # fmt: skip


def odd(n, *, seed=0):
    """Normal numbers, every third replaced by an oddity."""
    x = np.random.default_rng((seed, n)).standard_normal(n, dtype=np.float32)
    places = np.arange(seed % 3, n, 3)
    x[places] = ODDITIES[(places + seed) % len(ODDITIES)]
    return x


def assert_same_bits(actual, expected, *, label=""):
    """Fail unless all bits are equal; NaN equals NaN, whatever its sign and payload."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), label
    one_nan = (np.where(np.isnan(x), np.float32(np.nan), x) for x in (actual, expected))
    np.testing.assert_array_equal(*(x.view(np.uint32) for x in one_nan), err_msg=label)


@each_of("n", SIZES)
def test_a_dense_add_rounds_the_product_and_touches_nothing_else(emulator, n):
    for offset in (0, 1, 7, 33):
        arena, g = odd(n + 40, seed=1), odd(n, seed=2)
        expected = arena.copy()
        with np.errstate(all="ignore"):
            expected[offset : offset + n] += SCALE * g
        done = emulator.run(adds.dense_axpy(arena, g, scale=SCALE, offset=offset))["done"]
        assert_same_bits(arena, expected, label=f"offset {offset}")
        assert done == (n > 0)


HP = np.array([0.1, 0.7, 0.3, 0.02, 0.1, 0.7, 0.0, 0.0], np.float32)
ADD = np.array([1, 1, 0, 0] * 2, np.float32)  # adds 1 along a direction of -1


def stepped(w, u, decays):
    """What native code makes of parameters along directions, and the steps that it records."""
    after, deltas = w.copy(), np.zeros_like(w)
    for decay in (True, False):
        chosen = decays == decay
        moved, (last, prev) = w[chosen].copy(), np.zeros((2, chosen.sum()), np.float32)
        of = ("gradient", (), (HP[:4] if decay else HP[4:]).tolist())
        _native.step(*of, None, 1, moved, 0, u[chosen], last=last, prev=prev)
        after[chosen], deltas[chosen] = moved, last
    return after, deltas


def flags(floats):
    return np.arange(-(-floats // 32), dtype=np.uint8) % 2


@each_of("recorded", [False, True])
@each_of("n", SIZES[1:])
def test_a_step_has_the_bits_of_native_code_and_touches_nothing_else(emulator, n, recorded):
    offset, w, u = 33, odd(n + 73, seed=1), odd(n, seed=2)
    x = {"arena": w.copy(), "g": u}
    trace = {name: odd(w.size, seed=3) for name in ("last", "prev")} if recorded else {}
    x |= {name: array.copy() for name, array in trace.items()}
    emulator.run(adds.step(x, decays=flags(w.size), hp=HP, offset=offset))
    here, expected = slice(offset, offset + n), w.copy()
    expected[here], deltas = stepped(w[here], u, np.repeat(flags(w.size), 32)[here])
    assert_same_bits(x["arena"], expected)
    if recorded:
        trace["prev"][here] = trace["last"][here]
        trace["last"][here] = deltas
        for name, array in trace.items():
            assert_same_bits(x[name], array)


@each_of(("n_rows", "d"), [(0, 8), (1, 1), (1, 257), (2, 5), (9, 64), (40, 8)])
def test_a_step_of_rows_has_the_bits_of_native_code(emulator, n_rows, d):
    height, rng = 41, np.random.default_rng(d)
    rows = np.sort(rng.choice(height, n_rows, replace=False)).astype(np.int32)
    w, u = odd(height * d + 40, seed=1), odd(n_rows * d, seed=2).reshape(n_rows, d)
    x = {"arena": w.copy(), "rows": rows, "g": u}
    done = emulator.run(adds.step(x, decays=flags(w.size), hp=HP, offset=7, height=height))["done"]
    expected, decays = w.copy(), np.repeat(flags(w.size), 32)
    at = (7 + rows[:, None] * d + np.arange(d)).reshape(-1)
    expected[at], _ = stepped(w[at], u.reshape(-1), decays[at])
    assert_same_bits(x["arena"], expected)
    assert done.tolist() == [1] * n_rows


def test_rows_outside_the_parameter_are_left_out_and_reported(emulator):
    x = {"arena": np.ones(40, np.float32), "g": -np.ones((5, 4), np.float32)}
    x["rows"] = np.array([2, 3, -1, np.iinfo(np.int32).min, np.iinfo(np.int32).max], np.int32)
    done = emulator.run(adds.step(x, decays=flags(40), hp=ADD, offset=0, height=3))["done"]
    assert np.flatnonzero(x["arena"] == 2).tolist() == [8, 9, 10, 11]
    assert done.tolist() == [1, 0, 0, 0, 0]


ADDS = 128_000
N = 64  # elements, of which each counts exactly up to 2^24


def counting(name):
    """A launch that adds 1 to each element of an arena, and the arena."""
    (arena, last, prev), ones = np.zeros((3, N), np.float32), np.ones(N, np.float32)
    if name == "dense_axpy":
        return adds.dense_axpy(arena, ones, scale=1.0, offset=0), arena
    x, height = {"arena": arena, "g": -ones}, None
    if name == "step_recorded":
        x |= {"last": last, "prev": prev}
    if name == "step_rows":
        x |= {"rows": np.arange(8, dtype=np.int32), "g": -ones.reshape(8, 8)}
        height = 8
    decays = np.zeros(N // adds.FLAG_FLOATS, np.uint8)
    return adds.step(x, decays=decays, hp=ADD, offset=0, height=height), arena


WRITERS = [name for name, kernel in KERNELS.items() if any(one.writes for one in kernel.inputs)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_hundred_thousand_adds_under_schedule_fuzzing_all_arrive(new_emulator, name):
    """A launch is repeated along the axis of its grid that the kernel does not look at."""
    launch, arena = counting(name)
    assert launch.kernel.name == name
    (x, y, _), times = launch.grid, ADDS // N
    grid, threadgroup = ((x, y, times), (8, 8, 4)) if y > 1 else ((x, times, 1), (N, 4, 1))
    new_emulator(fuzz=11, threads=4).run(replace(launch, grid=grid, threadgroup=threadgroup))
    np.testing.assert_array_equal(arena, times)


@each_of("other", ["arena", "prev", "g"])
def test_an_array_that_a_kernel_writes_is_no_other_argument_too(emulator, other):
    x = {name: odd(64) for name in ("arena", "last", "prev", "g")}
    before = {name: array.copy() for name, array in x.items()}
    launch = adds.step(x, decays=flags(64), hp=HP, offset=0)
    with pytest.raises(ShapeError, match="is the same array as .*which the kernel writes in place"):
        emulator.run(replace(launch, inputs={**launch.inputs, "last": x[other]}))
    for name, array in x.items():
        assert_same_bits(array, before[name])


ONES, ARENA = np.ones(8, np.float32), np.zeros(16, np.float32)


def step(rows=None, *, offset=0, n_flags=1, hp=HP, **record):
    x = {"arena": ARENA, "g": ONES if rows is None else ONES.reshape(2, 4), **record}
    x |= {} if rows is None else {"rows": np.array(rows, np.int32)}
    height = None if rows is None else 4
    return adds.step(x, decays=np.zeros(n_flags, np.uint8), hp=hp, offset=offset, height=height)


BAD = {
    "-1 to 7": lambda: adds.dense_axpy(ARENA, ONES, scale=1, offset=-1),
    r"arena has shape \(4, 4\)": lambda: adds.dense_axpy(
        ARENA.reshape(4, 4), ONES[:4], scale=1, offset=0
    ),
    r"g has shape \(2, 4\), .* require \(1, 4\)": lambda: step([0]),
    "9 to 17": lambda: step(offset=9),
    "decays has 0 flags, for 0 floats; .* float 8 of": lambda: step(n_flags=0),
    r"last has shape \(8,\), .* require \(16,\)": lambda: step(last=ONES, prev=ARENA.copy()),
    "4 to 20 of the arena": lambda: step([0, 1], offset=4),
}


@each_of("message", BAD)
def test_a_launch_outside_its_arrays_is_refused(message):
    with pytest.raises(ShapeError, match=message):
        BAD[message]()
