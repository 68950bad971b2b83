"""Optimizer steps: the bits of the native optimizers, dense and by rows, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import steps
from mlxhog.metal.kernels.step_rules import sgd_hp
from mlxhog.optim import SGD, AdamW, Momentum, Target, metal_steps
from mlxhog.optim.gradients import Rows
from mlxhog.optim.metal_steps import MetalSteps
from mlxhog.optim.updates import WRITE_MODES
from tests.metal.kernels.numbers import SIZES, assert_same_bits, counter, normal, odd
from tests.optim.small import Slot
from tests.pairs import each_of

GRAD_SCALE = 0.7
OPTIMIZERS = {
    "sgd": SGD(weight_decay=0.3),
    "momentum": Momentum(momentum=0.8, weight_decay=0.3),
    "nesterov": Momentum(momentum=0.8, nesterov=True, weight_decay=0.3),
    "adamw": AdamW(weight_decay=0.3),
    "adamw shared": AdamW(weight_decay=0.3, shared=True),
}
names = each_of("name", OPTIMIZERS)


def assert_alike(engine, name, slots, decay, grads, fill=normal):
    """Kernels and native code take the same steps of these gradients from the same parameters."""
    rule, by_name, results = OPTIMIZERS[name], {slot.name: slot for slot in slots}, []
    for one in (None, engine):
        flat, m, v = np.zeros((3, slots[-1].offset + slots[-1].size + 40), np.float32)
        for slot in slots:
            flat[slot.offset : slot.offset + slot.size] = fill(slot.size, seed=1)
        state = {"m": m, "v": v}
        shared = {key: state.pop(key) for key in rule.shared_segments}
        metal = None if one is None else MetalSteps(one, flat, by_name, frozenset(decay))
        target = Target(
            flat, by_name, None, WRITE_MODES["racy"], state, shared, frozenset(decay), metal=metal
        )
        for step, gradient in enumerate(grads, start=1):
            rule.step(target, gradient, lr=0.05, step=step, grad_scale=GRAD_SCALE)
        results.append((flat, m, v))
    for label, native, ours in zip(("w", "m", "v"), *results, strict=True):
        assert_same_bits(ours, native, label=label)


@pytest.fixture(autouse=True)
def _not_on_pages(monkeypatch):
    monkeypatch.setattr(metal_steps, "adoptable", lambda host: host)


@pytest.mark.slow
@each_of("n", SIZES[1:])
@names
def test_dense_steps_have_the_bits_of_the_native_optimizer(engine, name, n):
    grads = [{"p": normal(n, seed=step)} for step in (1, 2, 3)]
    assert_alike(engine, name, [Slot("p", (n,), 32)], {"p"}, grads)


@names
def test_numbers_that_are_not_normal_move_as_in_the_native_optimizer(engine, name):
    grads = [{"p": odd(300, seed=step)} for step in (1, 2)]
    assert_alike(engine, name, [Slot("p", (300,), 0)], {"p"}, grads, fill=odd)


@names
def test_one_launch_over_a_run_decays_only_the_parameters_that_decay(engine, name):
    slots = Slot("a", (33,), 32), Slot("b", (32,), 96), Slot("c", (7,), 128), Slot("d", (40,), 160)
    grads = [{slot.name: normal(slot.size, seed=step) for slot in slots} for step in (2, 3)]
    assert_alike(engine, name, slots, {"a", "c"}, grads)


@each_of(("n_rows", "d"), [(0, 8), (1, 1), (1, 257), (2, 5), (9, 64), (40, 8), (40, 257)])
@names
def test_row_steps_have_the_bits_of_the_native_optimizer(engine, name, n_rows, d):
    slot, rng = Slot("embedding", (41, d), 32, "rows", row_word0=0), np.random.default_rng(d)
    rows = [np.sort(rng.choice(41, n_rows, replace=False)).astype(np.int32) for _ in range(3)]
    grads = [
        {"embedding": Rows(index, odd(n_rows * d, seed=step).reshape(n_rows, d))}
        for step, index in enumerate(rows, start=1)
    ]
    assert_alike(engine, name, [slot], {"embedding"}, grads)


def test_rows_that_python_cannot_see_are_left_out_and_reported(engine):
    flat, g = normal(12 + 8), np.ones((3, 4), np.float32)
    rates = {
        "decays": np.zeros(1, np.uint8),
        "hp": sgd_hp(lr=1.0, weight_decay=0.0),
    }
    x = {"arena": flat, "rows": np.arange(3, dtype=np.int32), "g": g}
    launch = steps.SGD.rows(x, **rates, offset=0, height=3)
    rows, before = np.array([-1, 1, 3], np.int32), flat.copy()
    outputs = engine.run(replace(launch, inputs={**launch.inputs, "rows": rows}))["done"]
    assert outputs.tolist() == [0, 1, 0]
    before[4:8] -= 1
    assert_same_bits(flat, before)


def test_an_empty_run_changes_nothing(engine):
    flat, nothing = normal(64), np.zeros(0, np.float32)
    before = flat.copy()
    x = {"arena": flat, "g": nothing, "m": flat.copy(), "v": flat.copy()}
    engine.run(steps.ADAM.dense(x, **RATES, offset=64))
    for name in ("arena", "m", "v"):
        assert_same_bits(x[name], before)


@each_of("axis", [0, 1, None])
@each_of("shape", [(1, 1), (3, 5), (5, 3), (64, 64), (257, 16)])
def test_apollo_scales_rows_columns_or_all(engine, shape, axis):
    n = shape[0] * shape[1]
    g, arena = normal(n).reshape(shape), normal(n + 20, seed=3)
    s = np.square(normal(1 if axis is None else shape[axis], seed=4))
    coef, decay = np.float32(-0.2), np.float32(0.03)
    factors = s[:, None] if axis == 0 else s[None, :]
    expected = arena.copy()
    w = expected[9 : 9 + n].reshape(shape)
    w += coef * (g * factors) - decay * w
    engine.run(steps.channel_scale_apply(arena, g, s, axis=axis, coef=coef, decay=decay, offset=9))
    assert_same_bits(arena, expected)


def test_an_element_of_the_shared_moment_that_never_settles_is_counted(host_engine):
    flat, m, v = (np.zeros(8, np.float32) for _ in range(3))
    # beta = 1 and 1 - beta = 1 make m and v count; the other rates leave w alone.
    hp = np.array([0, 0, 1, 1, 1, 1, 0, 1], np.float32)
    ones, decays, failures = np.ones(8, np.float32), np.zeros(1, np.uint8), counter()
    x = {"arena": flat, "m": m, "v": v, "failures": failures, "g": ones}
    launch = steps.ADAM_SHARED.dense(x, decays=decays, hp=hp, offset=0)
    source = launch.kernel.source.replace("AdamShared<>", "AdamShared<1>")
    impatient = replace(launch.kernel, source=source)
    shim = host_engine("mlx", chaos=5, threads=1)
    shim.run(replace(launch, kernel=impatient, grid=(8, 200, 1), group=(8, 32, 1)))
    assert 0 < failures[0] < 2 * 8 * 200
    assert m.sum() + v.sum() + float(failures[0]) == 2 * 8 * 200


FLAT, G8, M8 = np.zeros(64, np.float32), np.ones(8, np.float32), np.zeros(8, np.float32)
M64, V64 = np.zeros(64, np.float32), np.zeros(64, np.float32)
RATES = {"decays": np.zeros(2, np.uint8), "hp": np.zeros(8, np.float32)}
FEW = {**RATES, "decays": np.zeros(1, np.uint8)}
SGD8 = {"arena": FLAT, "g": G8}
G2 = np.ones((2, 4), np.float32)


def index(*rows):
    return np.array(rows, np.int32)


def rows_of(rows, m=M64, **rates):
    x = {"arena": FLAT, "rows": rows, "g": G2, "m": m}
    return steps.MOMENTUM.rows(x, **rates, offset=32, height=4)


BAD = {
    "negative offset": (lambda: steps.SGD.dense(SGD8, **RATES, offset=-4), "-4 to 4"),
    "past the end": (lambda: steps.SGD.dense(SGD8, **RATES, offset=60), "60 to 68"),
    "few flags": (
        lambda: steps.SGD.dense(SGD8, **FEW, offset=32),
        "decays has 1 flags, for 32 floats; the launch ends at float 40",
    ),
    "few rates": (
        lambda: steps.SGD.dense(SGD8, decays=RATES["decays"], hp=FLAT[:4], offset=0),
        r"hp has shape \(4,\), 4 elements; this launch needs 8",
    ),
    "state": (
        lambda: steps.ADAM.dense({**SGD8, "m": M64, "v": M8}, **RATES, offset=0),
        r"v, which is laid out as the arena, has shape \(8,\), 8 elements; this launch needs 64",
    ),
    "shared state": (
        lambda: steps.ADAM_SHARED.dense(
            {**SGD8, "m": M8, "v": V64, "failures": counter()}, **RATES, offset=0
        ),
        "m, which is laid out as the arena, has shape",
    ),
    "mean": (
        lambda: steps.muon_direction({"g": G8, "m": M64}, hp=RATES["hp"], offset=60),
        "60 to 68 of m, which has 64",
    ),
    "rows repeat": (lambda: rows_of(index(1, 1), **RATES), "rows repeat or do not ascend"),
    "rows descend": (lambda: rows_of(index(2, 1), **RATES), "rows repeat or do not ascend"),
    "row outside": (lambda: rows_of(index(1, 4), **RATES), "rows run from 1 to 4"),
    "row state": (lambda: rows_of(index(1, 2), m=M8, **RATES), "m, which is .* has shape"),
    "row flags": (lambda: rows_of(index(1, 2), **FEW), "decays has 1 flags"),
    "no matrix": (
        lambda: steps.channel_scale_apply(FLAT, G8, M8, axis=0, coef=1, offset=0),
        "expected a matrix",
    ),
    "axis": (
        lambda: steps.channel_scale_apply(FLAT, G2, M8, axis=2, coef=1, offset=0),
        "axis is 2",
    ),
    "factors": (
        lambda: steps.channel_scale_apply(FLAT, G2, M8, axis=1, coef=1, offset=0),
        "s has shape .* needs 4",
    ),
}


@each_of("case", BAD)
def test_arrays_that_do_not_fit_each_other_are_refused(case):
    make, message = BAD[case]
    with pytest.raises(ShapeError, match=message):
        make()


@each_of("other", ["arena", "v", "g"])
def test_an_array_that_a_kernel_writes_is_no_other_argument_too(shim, other):
    x = {name: normal(64) for name in ("arena", "m", "v", "g")}
    before = {name: array.copy() for name, array in x.items()}
    launch = steps.ADAM.dense(x, **RATES, offset=0)
    with pytest.raises(ShapeError, match="which it writes in place, is the same array as"):
        shim.run(replace(launch, inputs={**launch.inputs, "m": x[other]}))
    for name, array in x.items():
        assert_same_bits(array, before[name])
