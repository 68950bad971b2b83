"""Where gradients are taken: at the parameters, or where they are expected to be."""

import numpy as np
import pytest

from mlxhog.strategies.look_ahead import AsTheyAre, LastSteps, OwnMovement, reader, record
from tests.strategies.runs import LR, begin_step, config, first, new_arena, step, strategy, worker

N = 4
PREDICTIONS = {"none": AsTheyAre, "own": OwnMovement, "last": LastSteps}
SHARED = {"optimizer": "adamw", "moments": "shared"}


def ahead(prediction, **more):
    """A configuration that predicts so."""
    return config("hogwild", predict=prediction, **(SHARED if prediction == "last" else {}), **more)


@pytest.fixture
def arena():
    with new_arena(strategy(predict="last", **SHARED)) as arena:
        yield arena


def read(result, arena):
    """The first element that a reader reads."""
    dst = np.empty_like(arena.params)
    result.read(dst)
    assert len(set(dst[:N].tolist())) == 1
    return float(dst[0])


def last_steps(arena, last, prev):
    result = record(arena, ahead("last"), 2)
    assert result is not None
    result.last[:N], result.prev[:N] = last, prev


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_worker_reads_the_parameters_as_they_are(arena, prediction):
    last_steps(arena, 5.0, 3.0)
    arena.param("w")[...] = 1.0
    assert read(reader(arena, ahead(prediction), 1), arena) == 1.0
    assert type(reader(arena, ahead(prediction), 2)) is PREDICTIONS[prediction]


def test_last_steps_are_repeated_as_often_as_others_are_expected_to_step(arena):
    result = reader(arena, ahead("last"), 4)
    arena.param("w")[...] = 1.0
    last_steps(arena, 0.5, 0.25)
    step = 0.5 + 0.5 * (0.5 - 0.25)
    assert read(result, arena) == 1.0 + 3 * step  # one of each other worker, at first
    for _ in range(200):
        result.landed(7)
    assert read(result, arena) == pytest.approx(1.0 + 7 * step)
    result.landed(0)
    assert read(result, arena) == pytest.approx(1.0 + 0.9 * 7 * step)


@pytest.mark.parametrize(
    ("steps", "landed", "share"),
    [
        (4, 3, 3 / 4),
        (1, 0, 3 / 4),
        (300, 3, 3 / 300),  # it evaluated between its reads
        (31, 30, 3 / 4),  # it is slow: 30 come while it computes, too
    ],
)
def test_own_movement_is_extrapolated_for_no_more_steps_than_are_expected(
    arena, steps, landed, share
):
    result = reader(arena, ahead("own"), 4)
    for _ in range(200):
        result.landed(landed)
    arena.counters.store("version", steps)
    arena.param("w")[...] = 2.0
    assert read(result, arena) == pytest.approx(2.0 + share * 2.0, rel=1e-6)
    arena.counters.add("version", 4)
    arena.param("w")[...] = 3.0
    assert read(result, arena) == 3.0 + 0.75  # between these reads came one of each again


def test_every_step_of_a_worker_is_seen_by_the_next_read_of_another(arena):
    of = strategy(predict="last", **SHARED)
    one, other = (worker(arena, slot, of) for slot in (1, 2))
    step(one, -2.0)
    begin_step(other)
    moved = 2.0 * LR
    assert other.context.backend.inbox[0] == moved + (moved + 0.5 * moved)


def test_in_turn_copies_are_moved_on_by_the_steps_of_all_others():
    of = strategy("round_robin", 3, predict="last", **SHARED)
    with new_arena(of) as arena:
        step(worker(arena, 1, of), -2.0)
        moved = 2.0 * LR
        assert first(arena, "turns.after.1") == moved + 2 * (moved + 0.5 * moved)


def test_with_overlap_the_workers_own_step_is_expected_too(arena):
    last_steps(arena, 0.5, 0.5)
    assert read(reader(arena, ahead("last", overlap=True), 3), arena) == 3 * 0.5
    own = reader(arena, ahead("own", overlap=True), 3)
    arena.param("w")[...] = 2.0
    assert read(own, arena) == 2.0 + 2.0  # 3/3 of the movement
    assert own.horizon(3) == 3.0
