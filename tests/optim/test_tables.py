"""Steps of tables: the formula, rows outside of the batch, and a norm of 0."""

import math

import numpy as np
import pytest

from mlxhog import arena, optim, strategies
from mlxhog.config.config import TrainConfig
from mlxhog.models.spec import ParamSpec
from mlxhog.optim.gradients import Rows
from mlxhog.optim.rule import parameter
from mlxhog.optim.tables import NORM, WithTables

SPECS = {name: ParamSpec(name, (9, 4), "zeros", "table") for name in ("ngrams.table_2", "other")}
ONE, OTHER = SPECS
WITH_W = {"w": ParamSpec("w", (3,), "zeros"), **SPECS}
SERIAL = TrainConfig(steps=1, strategy="serial", optimizer="sgd", lr=0.3, ngram_lr=0.03)


def private():
    """A rule, and its target of one process."""
    groups = dict.fromkeys(("embedding", "head", "scalar"), frozenset())
    rule = strategies.build_optimizer(SERIAL, groups={**groups, "table": frozenset(SPECS)})
    layout = arena.plan(WITH_W, n_tickets=1)
    flat = np.zeros(layout.n_floats, np.float32)
    return rule, optim.UpdateTarget.alone(rule, flat, layout.slots, frozenset())


def gradient(seed, *index):
    values = np.random.default_rng(seed).standard_normal((len(index), 4)).astype(np.float32)
    return Rows(np.array(index, np.int32), values)


def test_a_step_is_the_gradient_over_the_running_norm_of_its_table():
    rule, target = private()
    expected, mean = np.zeros((9, 4)), 0.0
    grads = (gradient(0, 1, 4), gradient(1, 4, 5, 8), gradient(2, 0))
    for step, grad in enumerate(grads, 1):
        rule.step(target, {"w": np.ones(3, np.float32), ONE: grad}, lr=0.3 / step, step=step)
        square = float(np.square(grad.values, dtype=np.float64).mean())
        mean = square if step == 1 else 0.95 * mean + 0.05 * square
        expected[grad.index] -= 0.03 / step * grad.values / math.sqrt(mean)
    table = parameter(target.flat, target.slots[ONE])
    assert np.allclose(table, expected, rtol=1e-5, atol=0)
    assert not table[[2, 3, 6, 7]].any()  # rows that no batch touched
    assert not parameter(target.flat, target.slots[OTHER]).any()
    assert parameter(target.flat, target.slots["w"]) == pytest.approx(-0.3 * (1 + 1 / 2 + 1 / 3))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_gradient_of_zeros_or_one_that_is_not_finite_moves_nothing(value):
    rule, target = private()
    rule.step(target, {ONE: gradient(0, 1)}, lr=0.3, step=1)
    before, norms = target.flat.copy(), target.private[NORM].copy()
    nothing = Rows(np.array([3], np.int32), np.full((1, 4), value, np.float32))
    rule.step(target, {OTHER: nothing}, lr=0.3, step=2)
    assert np.array_equal(target.flat, before)
    assert np.array_equal(target.private[NORM], norms)


def test_in_an_arena_tables_are_behind_all_that_other_segments_copy():
    sizes = {"n_tickets": 1, "max_workers": 2, "private": ["m", NORM], "state": {NORM: {ONE: (1,)}}}
    layout = arena.plan(WITH_W, **sizes, extra={"copy": ("float32", -1), "part": ("float32", -2)})
    counts = {name: layout.segments[name].count for name in ("params", "copy", "part", "m.1")}
    assert counts == {"params": layout.n_floats, "copy": layout.n_floats, "part": 4096, "m.1": 4096}
    assert list(layout.parts("copy")) == ["w", *SPECS]
    assert list(layout.parts("m.1")) == ["w"]
    assert layout.n_lock_words == layout.n_floats // 1024 + 18
    rule = WithTables(strategies.build_optimizer(SERIAL), frozenset({ONE}), 0.1)
    with arena.Arena.create(layout) as made:
        target = optim.UpdateTarget(
            flat=made.params, slots=layout.slots, locks=made.locks(), mode=0,
            private={NORM: made.segment(f"{NORM}.1")}, shared={}, decay=frozenset(),
            places=layout.state,
        )  # fmt: skip
        rule.step(target, {ONE: gradient(0, 1)}, lr=0.3, step=1)
        assert made.param(ONE)[1].any()
        assert not made.dense.any()
        del target
