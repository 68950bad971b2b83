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

SCALE = np.float32(-0.3)


@each_of("n", SIZES)
def test_a_dense_add_rounds_the_product_and_touches_nothing_else(shim, n):
    for offset in (0, 1, 7, 33):
        arena, g = odd(n + 40, seed=1), odd(n, seed=2)
        expected = arena.copy()
        with np.errstate(all="ignore"):
            expected[offset : offset + n] += SCALE * g
        done = shim.run(adds.dense_axpy(arena, g, scale=SCALE, offset=offset))["done"]
        assert_same_bits(arena, expected, label=f"offset {offset}")
        assert done == (n > 0)


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
def test_a_step_has_the_bits_of_native_code_and_touches_nothing_else(shim, n, recorded):
    offset, w, u = 33, odd(n + 73, seed=1), odd(n, seed=2)
    x = {"arena": w.copy(), "g": u}
    trace = {name: odd(w.size, seed=3) for name in ("last", "prev")} if recorded else {}
    x |= {name: array.copy() for name, array in trace.items()}
    shim.run(adds.step(x, decays=flags(w.size), hp=HP, offset=offset))
    here, expected = slice(offset, offset + n), w.copy()
    expected[here], deltas = stepped(w[here], u, np.repeat(flags(w.size), 32)[here])
    assert_same_bits(x["arena"], expected)
    if recorded:
        trace["prev"][here] = trace["last"][here]
        trace["last"][here] = deltas
        for name, array in trace.items():
            assert_same_bits(x[name], array)


@each_of(("n_rows", "d"), [(0, 8), (1, 1), (1, 257), (2, 5), (9, 64), (40, 8)])
def test_a_step_of_rows_has_the_bits_of_native_code(shim, n_rows, d):
    height, rng = 41, np.random.default_rng(d)
    rows = np.sort(rng.choice(height, n_rows, replace=False)).astype(np.int32)
    w, u = odd(height * d + 40, seed=1), odd(n_rows * d, seed=2).reshape(n_rows, d)
    x = {"arena": w.copy(), "rows": rows, "g": u}
    done = shim.run(adds.step(x, decays=flags(w.size), hp=HP, offset=7, height=height))["done"]
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


def test_rows_that_python_cannot_see_are_left_out_and_reported(shim):
    x = {"arena": np.ones(40, np.float32), "g": -np.ones((5, 4), np.float32)}
    rows = np.array([2, 3, -1, np.iinfo(np.int32).min, np.iinfo(np.int32).max], np.int32)
    hp = np.array([1, 1, 0, 0] * 2, np.float32)
    hidden = {**x, "rows": mx.array(rows)}
    launch = adds.step(hidden, decays=flags(40), hp=hp, offset=0, height=3)
    done = shim.run(replace(launch, inputs={**launch.inputs, "rows": rows}))["done"]
    assert np.flatnonzero(x["arena"] == 2).tolist() == [8, 9, 10, 11]
    assert done.tolist() == [1, 0, 0, 0, 0]


@each_of("array", [mx.array, torch.from_numpy, np.asarray])
def test_launches_are_made_of_arrays_of_every_framework(array):
    arena, g = array(normal(64)), array(normal(12).reshape(3, 4))
    dense = adds.dense_axpy(arena, g, scale=1.0, offset=2)
    assert (dense.grid, dense.inputs["n"]) == ((12, 1, 1), 12)
    assert dense.inputs["arena"] is arena
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
    "row below": (lambda a: step(a, [-1, 0]), "rows run from -1 to 0; .* rows 0 to 3"),
    "rows and values": (lambda a: step(a, [0]), r"expected \(r,\) and \(r, d\)"),
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
    "parameter past the end": (lambda a: step(a, [0, 1], offset=4), "4 to 20 of the arena"),
}


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
