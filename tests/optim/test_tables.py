"""Steps of tables: the formula, rows outside of the batch, and a norm of 0."""

import math

import numpy as np
import pytest

from mlxhog import arena
from mlxhog.models.spec import ParamSpec
from mlxhog.optim.gradients import Rows
from mlxhog.optim.tables import MEANS, Tables, segments
from mlxhog.optim.updates import WRITE_MODES

SPECS = {name: ParamSpec(name, (9, 4), "zeros", "rows") for name in ("ngrams.table_2", "other")}
ONE, OTHER = SPECS


def private():
    """Two tables of one process."""
    layout = arena.plan({"w": ParamSpec("w", (3,), "zeros")}, tables=SPECS, n_tickets=1)
    floats = layout.segments["tables"].count
    return Tables(
        flat=np.zeros(floats, np.float32),
        slots=layout.tables,
        means=np.zeros(2),
        locks=None,
        mode=WRITE_MODES["racy"],
    )


def table(tables, name):
    slot = tables.slots[name]
    return tables.flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)


def gradient(seed, *index):
    values = np.random.default_rng(seed).standard_normal((len(index), 4)).astype(np.float32)
    return Rows(np.array(index, np.int32), values)


def test_a_step_is_the_gradient_over_the_running_norm_of_its_table():
    ours, expected, mean = private(), np.zeros((9, 4)), 0.0
    for step, grad in enumerate((gradient(0, 1, 4), gradient(1, 4, 5, 8), gradient(2, 0))):
        ours.step({ONE: grad}, lr=0.03 / (step + 1))
        square = float(np.square(grad.values, dtype=np.float64).mean())
        mean = square if step == 0 else 0.95 * mean + 0.05 * square
        expected[grad.index] -= 0.03 / (step + 1) * grad.values / math.sqrt(mean)
    assert np.allclose(table(ours, ONE), expected, rtol=1e-5, atol=0)
    assert ours.means[0] == pytest.approx(mean)
    assert not table(ours, ONE)[[2, 3, 6, 7]].any()  # rows that no batch touched
    assert not table(ours, OTHER).any()


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_gradient_of_zeros_or_one_that_is_not_finite_moves_nothing(value):
    ours = private()
    ours.step({ONE: gradient(0, 1)}, lr=0.03)
    before, means = ours.flat.copy(), ours.means.copy()
    ours.step({OTHER: Rows(np.array([3], np.int32), np.full((1, 4), value, np.float32))}, lr=0.03)
    assert np.array_equal(ours.flat, before)
    assert np.array_equal(ours.means, means)


def test_in_an_arena_tables_are_apart_from_all_that_is_laid_out_like_the_parameters():
    spec = {"w": ParamSpec("w", (3,), "zeros")}
    sizes = {"n_tickets": 1, "max_workers": 2, "private": ["m"], "extra": segments(2)}
    layout, plain = (arena.plan(spec, tables=tables, **sizes) for tables in (SPECS, None))
    assert layout.n_floats == plain.n_floats
    assert layout.n_lock_words == plain.n_lock_words + 18
    with arena.Arena.create(layout) as made:
        made.param(OTHER)[3] = 1.0
        ours = Tables.of(made, made.workers.host_slot)
        ours.step({ONE: gradient(0, 1), OTHER: gradient(0, 3)}, lr=0.03)
        assert made.param(OTHER)[3].any()
        assert made.segment(MEANS).all()
        assert not made.params.any()
        del ours
