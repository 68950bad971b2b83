"""Adds to the flat arena, and steps: values by their bits, and what is refused."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog import _native
from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import adds
from mlxhog.metal.kernels.arguments import MOST
from tests.metal.kernels.numbers import SIZES, assert_same_bits, normal, odd
from tests.pairs import each_of

DENSE = {"dense_axpy": adds.dense_axpy, "racy_axpy": adds.racy_axpy}
SCALE = np.float32(-0.3)


def added(arena, g, offset):
    """What the arena is after the add of one writer."""
    after = arena.copy()
    with np.errstate(all="ignore"):
        after[offset : offset + g.size] += SCALE * g.reshape(-1)
    return after


@each_of("n", SIZES)
@each_of("name", DENSE)
def test_a_dense_add_rounds_the_product_and_touches_nothing_else(engine, name, n):
    for offset in (0, 1, 7, 33):
        arena, g = odd(n + 40, seed=1), odd(n, seed=2)
        expected = added(arena, g, offset)
        engine.run(DENSE[name](arena, g, scale=SCALE, offset=offset))
        assert_same_bits(arena, expected, label=f"offset {offset}")


def test_a_gradient_of_any_shape_is_added_in_row_major_order(engine):
    arena, g = normal(40), normal(30).reshape(2, 3, 5)
    expected = added(arena, g, 4)
    engine.run(adds.dense_axpy(arena, g, scale=SCALE, offset=4))
    assert_same_bits(arena, expected)


def test_a_launch_says_that_it_has_run(engine):
    arena = normal(8)
    assert engine.run(adds.dense_axpy(arena, arena.copy(), scale=1, offset=0))["done"] == 1


@each_of(("n_rows", "d"), [(0, 8), (1, 1), (1, 257), (2, 7), (9, 64), (300, 31), (300, 257)])
def test_rows_add_up_with_their_duplicates(engine, n_rows, d):
    rng = np.random.default_rng((n_rows, d))
    height = 11
    rows = rng.integers(0, height, n_rows).astype(np.int32)
    g = rng.integers(-9, 10, (n_rows, d)).astype(np.float32)  # exact in any order
    arena = rng.integers(-9, 10, height * d + 16).astype(np.float32)
    expected = arena.copy()
    np.add.at(expected[5 : 5 + height * d].reshape(height, d), rows, np.float32(-0.5) * g)
    outputs = engine.run(
        adds.scatter_add_rows(arena, rows, g, scale=-0.5, offset=5, height=height)
    )["done"]
    assert_same_bits(arena, expected)
    assert outputs.tolist() == [1] * n_rows


def test_rows_of_any_numbers_agree_to_rounding(engine):
    rows = np.random.default_rng(0).integers(0, 50, 4000).astype(np.int32)
    arena, g = normal(50 * 16 + 3), normal(4000 * 16).reshape(4000, 16)
    expected = arena.astype(np.float64)
    np.add.at(expected[3:].reshape(50, 16), rows, np.float64(SCALE) * g)
    engine.run(adds.scatter_add_rows(arena, rows, g, scale=SCALE, offset=3, height=50))
    np.testing.assert_allclose(arena, expected, rtol=1e-6, atol=1e-5)


def test_nan_and_infinity_in_a_row_stay_in_their_row(engine):
    arena = np.ones(4 * 3 + 8, np.float32)
    g = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    rows = np.array([2], np.int32)
    engine.run(adds.scatter_add_rows(arena, rows, g, scale=1.0, offset=0, height=4))
    assert_same_bits(arena[6:9], g[0])
    assert (np.delete(arena, [6, 7, 8]) == 1).all()


def test_rows_that_python_cannot_see_are_left_out_and_reported(engine):
    arena = normal(3 * 4 + 8)
    g = np.ones((5, 4), np.float32)
    launch = adds.scatter_add_rows(arena, np.zeros(5, np.int32), g, scale=1, offset=0, height=3)
    rows = np.array([2, 3, -1, np.iinfo(np.int32).min, np.iinfo(np.int32).max], np.int32)
    expected = arena.copy()
    expected[8:12] += 1
    outputs = engine.run(replace(launch, inputs={**launch.inputs, "rows": rows}))["done"]
    assert_same_bits(arena, expected)
    assert outputs.tolist() == [1, 0, 0, 0, 0]


# -- steps -----------------------------------------------------------------------------------------

HP = np.array([0.1, 0.7, 0.3, 0.02, 0.1, 0.7, 0.0, 0.0], np.float32)


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
def test_a_step_has_the_bits_of_native_code_and_touches_nothing_else(engine, n, recorded):
    offset, w, u = 33, odd(n + 73, seed=1), odd(n, seed=2)
    x = {"arena": w.copy(), "g": u}
    trace = {name: odd(w.size, seed=3) for name in ("last", "prev")} if recorded else {}
    x |= {name: array.copy() for name, array in trace.items()}
    engine.run(adds.step(x, decays=flags(w.size), hp=HP, offset=offset))
    here, expected = slice(offset, offset + n), w.copy()
    expected[here], deltas = stepped(w[here], u, np.repeat(flags(w.size), 32)[here])
    assert_same_bits(x["arena"], expected)
    if recorded:
        trace["prev"][here] = trace["last"][here]
        trace["last"][here] = deltas
        for name, array in trace.items():
            assert_same_bits(x[name], array)


@each_of(("n_rows", "d"), [(0, 8), (1, 1), (1, 257), (2, 5), (9, 64), (40, 8)])
def test_a_step_of_rows_has_the_bits_of_native_code(engine, n_rows, d):
    height, rng = 41, np.random.default_rng(d)
    rows = np.sort(rng.choice(height, n_rows, replace=False)).astype(np.int32)
    w, u = odd(height * d + 40, seed=1), odd(n_rows * d, seed=2).reshape(n_rows, d)
    x = {"arena": w.copy(), "rows": rows, "g": u}
    done = engine.run(adds.step(x, decays=flags(w.size), hp=HP, offset=7, height=height))["done"]
    expected, decays = w.copy(), np.repeat(flags(w.size), 32)
    at = (7 + rows[:, None] * d + np.arange(d)).reshape(-1)
    expected[at], _ = stepped(w[at], u.reshape(-1), decays[at])
    assert_same_bits(x["arena"], expected)
    assert done.tolist() == [1] * n_rows


@each_of("other", ["arena", "prev", "g"])
def test_an_array_that_a_kernel_writes_is_no_other_argument_too(shim, other):
    x = {name: normal(64) for name in ("arena", "last", "prev", "g")}
    before = {name: array.copy() for name, array in x.items()}
    launch = adds.step(x, decays=flags(64), hp=HP, offset=0)
    with pytest.raises(ShapeError, match="which it writes in place, is the same array as"):
        shim.run(replace(launch, inputs={**launch.inputs, "last": x[other]}))
    for name, array in x.items():
        assert_same_bits(array, before[name])


def test_the_naive_add_loses_adds_which_the_atomic_one_keeps(consumer, host_engine):
    def sums(front):
        shim = host_engine(consumer, chaos=3, threads=1)  # one seed, one thread: one schedule
        arena = np.zeros(64, np.float32)
        launch = front(arena, np.ones(64, np.float32), scale=1.0, offset=0)
        shim.run(replace(launch, grid=(64, 1000, 1), group=(64, 4, 1)))
        return arena

    np.testing.assert_array_equal(sums(adds.dense_axpy), 1000)
    racy = sums(adds.racy_axpy)
    assert racy.sum() < 0.95 * 64 * 1000
    assert racy.max() <= 1000
    assert_same_bits(sums(adds.racy_axpy), racy)


@each_of("array", [mx.array, torch.from_numpy, np.asarray])
def test_launches_are_made_of_arrays_of_every_framework(array):
    arena, g = array(normal(64)), array(normal(12).reshape(3, 4))
    rows = array(np.array([5, 0, 5], np.int32))
    dense = adds.dense_axpy(arena, g, scale=1.0, offset=2)
    assert (dense.grid, dense.inputs["n"]) == ((12, 1, 1), 12)
    assert dense.inputs["arena"] is arena
    assert adds.scatter_add_rows(arena, rows, g, scale=1.0, offset=0, height=6).grid == (4, 3, 1)
    with pytest.raises(ShapeError, match="60 to 72"):
        adds.dense_axpy(arena, g, scale=1.0, offset=60)


class Huge:
    """An array as large as no arena of a test can be."""

    shape = (MOST + 1,)


ONES = np.ones(8, np.float32)
BAD = {
    "negative offset": (lambda a: adds.dense_axpy(a, ONES, scale=1, offset=-1), "-1 to 7"),
    "past the end": (lambda a: adds.dense_axpy(a, ONES, scale=1, offset=9), "9 to 17"),
    "far past the end": (lambda a: adds.dense_axpy(a, ONES, scale=1, offset=2**32), "4294967296"),
    "racy past the end": (lambda a: adds.racy_axpy(a, ONES, scale=1, offset=9), "9 to 17"),
    "small arena": (
        lambda a: adds.dense_axpy(a[:7], ONES[:1], scale=1, offset=0),
        "8 or more elements in place",
    ),
    "arena not flat": (
        lambda a: adds.dense_axpy(a.reshape(4, 4), ONES, scale=1, offset=0),
        "flat arrays",
    ),
    "huge arena": (lambda a: adds.dense_axpy(Huge(), ONES, scale=1, offset=0), "up to 2147483647"),
    "huge gradient": (
        lambda a: adds.dense_axpy(a, Huge(), scale=1, offset=0),
        "launch it in parts",
    ),
    "row below": (lambda a: scatter(a, [-1, 0]), "rows run from -1 to 0; .* rows 0 to 3"),
    "row above": (lambda a: scatter(a, [0, 4]), "rows run from 0 to 4; .* rows 0 to 3"),
    "rows and values": (lambda a: scatter(a, [0]), r"expected \(r,\) and \(r, d\)"),
    "step past the end": (lambda a: step(a, offset=9), "9 to 17"),
    "few flags": (lambda a: step(a, flags=0), "decays has 0 flags, for 0 floats; .* float 8 of"),
    "few rates": (lambda a: step(a, hp=HP[:4]), r"hp has shape \(4,\), 4 elements; .* needs 8"),
    "record": (
        lambda a: step(a, last=ONES, prev=a.copy()),
        r"last, which is laid out as the arena, has shape \(8,\)",
    ),
    "rows repeat": (lambda a: step(a, [1, 1]), "rows repeat or do not ascend"),
    "rows descend": (lambda a: step(a, [2, 1]), "rows repeat or do not ascend"),
    "step of a row above": (lambda a: step(a, [1, 4]), "rows run from 1 to 4"),
    "parameter past the end": (lambda a: scatter(a, [0, 1], height=6), "0 to 18 of the arena"),
}


def scatter(arena, rows, height=4):
    g = np.ones((2, 3), np.float32)
    index = np.array(rows, np.int32)
    return adds.scatter_add_rows(arena, index, g, scale=1, offset=0, height=height)


def step(arena, rows=None, *, offset=0, flags=1, hp=HP, **record):
    x = {"arena": arena, "g": ONES if rows is None else ONES.reshape(2, 4), **record}
    x |= {} if rows is None else {"rows": np.array(rows, np.int32)}
    height = None if rows is None else 4
    return adds.step(x, decays=np.zeros(flags, np.uint8), hp=hp, offset=offset, height=height)


@each_of("case", BAD)
def test_a_launch_outside_its_arrays_is_refused(case):
    make, message = BAD[case]
    with pytest.raises(ShapeError, match=message):
        make(np.zeros(16, np.float32))
