"""Optimizer steps: the bits of the native optimizers, dense and by rows, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from mlxhog.errors import ShapeError
from mlxhog.metal.kernels import steps
from mlxhog.metal.kernels.step_rules import FLAG_FLOATS, adam_hp, momentum_hp, muon_hp, sgd_hp
from mlxhog.optim import SGD, AdamW, Momentum, Optimizer, Target
from mlxhog.optim.gradients import Rows
from tests.metal.kernels.numbers import SIZES, Array, assert_same_bits, counter, normal, odd
from tests.optim.small import Slot
from tests.pairs import each_of

LR, GRAD_SCALE = 0.05, 0.7
RACY = 1  # needs no locks; with one worker all write modes give the same bits
OPTIMIZERS = {
    "sgd": SGD(weight_decay=0.3),
    "momentum": Momentum(momentum=0.8, weight_decay=0.3),
    "nesterov": Momentum(momentum=0.8, nesterov=True, weight_decay=0.3),
    "adamw": AdamW(weight_decay=0.3),
    "adamw shared": AdamW(weight_decay=0.3, shared=True),
}


@dataclass
class Worker:
    """One worker's arena and state, of which two are made alike: native, and through kernels."""

    rule: Optimizer
    slots: tuple[Slot, ...]
    decay: frozenset[str]
    flat: Array
    m: Array
    v: Array

    def native_step(self, grads, step):
        state = {"m": self.m, "v": self.v}
        shared = {name: state.pop(name) for name in self.rule.shared_segments}
        slots = {slot.name: slot for slot in self.slots}
        target = Target(self.flat, slots, None, RACY, state, shared, self.decay)
        self.rule.step(target, grads, lr=LR, step=step, grad_scale=GRAD_SCALE)

    def rates(self, step):
        """The keywords of a kernel's front function."""
        rule, flags = self.rule, np.zeros(-(-len(self.flat) // FLAG_FLOATS), np.uint8)
        for slot in self.slots:
            if slot.name in self.decay:
                end = slot.offset + slot.size
                flags[slot.offset // FLAG_FLOATS : -(-end // FLAG_FLOATS)] = 1
        if isinstance(rule, SGD):
            hp = sgd_hp(lr=LR, weight_decay=rule.weight_decay)
        elif isinstance(rule, Momentum):
            hp = momentum_hp(
                lr=LR,
                momentum=rule.momentum,
                nesterov=rule.nesterov,
                weight_decay=rule.weight_decay,
            )
        else:
            assert isinstance(rule, AdamW)
            hp = adam_hp(
                lr=LR,
                beta1=rule.beta1,
                beta2=rule.beta2,
                eps=rule.eps,
                weight_decay=rule.weight_decay,
                bias1=1 - rule.beta1**step,
                bias2=1 - rule.beta2**step,
            )
        return {"decays": flags, "hp": hp, "grad_scale": GRAD_SCALE}

    def dense_step(self, engine, g, offset, step):
        """One launch over a run of parameters."""
        x = {"g": g, **self.state()}
        engine.run(self.rule.metal_rule.dense(x, **self.rates(step), offset=offset))

    def row_step(self, engine, grad, slot, step):
        """One launch over the rows that a gradient touches."""
        more = {**self.rates(step), "offset": slot.offset, "height": slot.shape[0]}
        x = {"rows": grad.index, "g": grad.values, **self.state()}
        engine.run(self.rule.metal_rule.rows(x, **more))

    def state(self):
        """The arrays that a launch writes in place."""
        moments = {name: getattr(self, name) for name in self.rule.metal_rule.written}
        failures = {"failures": counter()} if self.rule.shared_segments else {}
        return {"arena": self.flat, **moments, **failures}


def two_alike(name, floats, decay, *slots):
    def make():
        flat = normal(floats, seed=1)
        zeros = [np.zeros(floats, np.float32) for _ in range(2)]
        return Worker(OPTIMIZERS[name], slots, frozenset(decay), flat, *zeros)

    return make(), make()


def assert_alike(native, metal):
    assert_same_bits(metal.flat, native.flat, label="w")
    assert_same_bits(metal.m, native.m, label="m")
    assert_same_bits(metal.v, native.v, label="v")


@pytest.mark.slow
@each_of("n", SIZES[1:])
@each_of("name", OPTIMIZERS)
def test_dense_steps_have_the_bits_of_the_native_optimizer(engine, name, n):
    for offset in (0, 5, 64) if n < 1_000_000 else (5,):
        slot = Slot("p", (n,), offset)
        native, metal = two_alike(name, offset + n + 40, {"p"}, slot)
        for step in (1, 2, 3) if n < 1_000_000 else (1, 2):
            g = normal(n, seed=step)
            native.native_step({"p": g}, step)
            metal.dense_step(engine, g, offset, step)
            assert_alike(native, metal)


@each_of("name", OPTIMIZERS)
def test_numbers_that_are_not_normal_move_as_in_the_native_optimizer(engine, name):
    slot = Slot("p", (300,), 0)
    native, metal = two_alike(name, 300, {"p"}, slot)
    native.flat[:] = metal.flat[:] = odd(300, seed=7)
    for step in (1, 2):
        g = odd(300, seed=step)
        native.native_step({"p": g}, step)
        metal.dense_step(engine, g, 0, step)
        assert_alike(native, metal)


@each_of("name", OPTIMIZERS)
def test_one_launch_over_a_run_decays_only_the_parameters_that_decay(engine, name):
    slots = Slot("a", (33,), 32), Slot("b", (32,), 96), Slot("c", (7,), 128), Slot("d", (40,), 160)
    native, metal = two_alike(name, 256, {"a", "c"}, *slots)
    run = np.zeros(200 - 32, np.float32)
    gap = np.ones(run.size, bool)
    for slot in slots:
        here = slice(slot.offset - 32, slot.offset - 32 + slot.size)
        run[here], gap[here] = normal(slot.size, seed=slot.offset), False
    for step in (1, 2):
        native.native_step(
            {s.name: run[s.offset - 32 : s.offset - 32 + s.size] for s in slots}, step
        )
        metal.dense_step(engine, run, 32, step)
    # Nothing lies between parameters, so what a run does there is nobody's concern.
    for flat in (native.flat, metal.flat, native.m, metal.m, native.v, metal.v):
        flat[32:200][gap] = 0
    assert_alike(native, metal)


@each_of(("n_rows", "d"), [(0, 8), (1, 1), (1, 257), (2, 5), (9, 64), (40, 8), (40, 257)])
@each_of("name", OPTIMIZERS)
def test_row_steps_have_the_bits_of_the_native_optimizer(engine, name, n_rows, d):
    slot = Slot("embedding", (41, d), 32, "rows", row_word0=0)
    native, metal = two_alike(name, 32 + slot.size + 9, {"embedding"}, slot)
    rng = np.random.default_rng((n_rows, d))
    for step in (1, 2, 3):
        rows = np.sort(rng.choice(41, n_rows, replace=False)).astype(np.int32)
        grad = Rows(rows, odd(n_rows * d, seed=step).reshape(n_rows, d))
        native.native_step({"embedding": grad}, step)
        metal.row_step(engine, grad, slot, step)
        assert_alike(native, metal)


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
    source = launch.kernel.source.replace("adam_shared_apply", "adam_shared_apply<1>")
    impatient = replace(launch.kernel, source=source)
    shim = host_engine("mlx", chaos=5, threads=1)
    shim.run(replace(launch, kernel=impatient, grid=(8, 200, 1), group=(8, 32, 1)))
    assert 0 < failures[0] < 2 * 8 * 200
    assert m.sum() + v.sum() + float(failures[0]) == 2 * 8 * 200


def test_a_recorded_step_is_the_same_step_and_is_kept_beside_the_one_before(engine):
    for plain, recorded in (
        (steps.SGD, steps.SGD_RECORDED),
        (steps.ADAM_SHARED, steps.ADAM_SHARED_RECORDED),
    ):
        moments = {name: np.square(normal(40, seed=2)) for name in plain.shared}
        one, other = ({k: v.copy() for k, v in moments.items()} for _ in range(2))
        flats, record = [normal(40), normal(40)], {"last": normal(40, seed=3), "prev": normal(40)}
        failures = {"failures": counter()} if plain.shared else {}
        for rule, flat, state in (
            (plain, flats[0], one),
            (recorded, flats[1], {**other, **record}),
        ):
            before = {k: v.copy() for k, v in record.items()}
            x = {"arena": flat, "g": normal(32, seed=5), **state, **failures}
            rates = {"decays": np.ones(2, np.uint8), "hp": np.full(8, 0.25, np.float32)}
            engine.run(rule.dense(x, **rates, grad_scale=GRAD_SCALE, offset=4))
        assert_same_bits(*flats)
        for name in plain.shared:
            assert_same_bits(one[name], other[name], label=name)
        here = slice(4, 36)
        assert_same_bits(record["prev"][here], before["last"][here])
        assert_same_bits(normal(40)[here] + record["last"][here], flats[1][here])
        outside = np.r_[0:4, 36:40]
        for name in ("last", "prev"):
            assert_same_bits(record[name][outside], before[name][outside])


def test_a_shared_mean_moves_as_a_private_one(engine):
    m, g = normal(50, seed=1), normal(32, seed=2)
    rates = {"hp": muon_hp(beta1=0.9, nesterov=0.2), "grad_scale": GRAD_SCALE}
    means, directions = [m.copy(), m.copy()], []
    for mean, failures in zip(means, ({}, {"failures": counter()}), strict=True):
        launch = steps.muon_direction({"g": g, "m": mean, **failures}, **rates, offset=9)
        directions.append(engine.run(launch)["x_out"])
    assert_same_bits(*means)
    assert_same_bits(*directions)
    s = np.float32(GRAD_SCALE) * g
    assert_same_bits(means[0][9:41], np.float32(0.9) * m[9:41] + np.float32(0.1) * s)
    outside = np.r_[0:9, 41:50]
    assert_same_bits(means[0][outside], m[outside])


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


@each_of("name", ["arena", "g", "m", "v", "decays", "hp"])
def test_another_dtype_is_refused_and_nothing_written(shim, name):
    arena = normal(64)
    before = arena.copy()
    x = {"arena": arena, "g": G8, "m": M64, "v": V64}
    launch = steps.ADAM.dense(x, **RATES, offset=0)
    wrong = launch.inputs[name].astype(np.float64)
    with pytest.raises(ShapeError, match=f"adam_apply: {name}"):
        shim.run(replace(launch, inputs={**launch.inputs, name: wrong}))
    assert_same_bits(arena, before)


@each_of("other", ["arena", "v", "g"])
def test_an_array_that_a_kernel_writes_is_no_other_argument_too(shim, other):
    x = {name: normal(64) for name in ("arena", "m", "v", "g")}
    before = {name: array.copy() for name, array in x.items()}
    launch = steps.ADAM.dense(x, **RATES, offset=0)
    with pytest.raises(ShapeError, match="which it writes in place, is the same array as"):
        shim.run(replace(launch, inputs={**launch.inputs, "m": x[other]}))
    for name, array in x.items():
        assert_same_bits(array, before[name])
