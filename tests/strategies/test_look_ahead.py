"""Where gradients are taken: at the parameters, or where they are expected to be."""

from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.control import Command
from mlxhog.config.budget import Budget
from mlxhog.strategies import Lease
from mlxhog.strategies.hogwild import Hogwild, HogwildWorker
from mlxhog.strategies.look_ahead import AsTheyAre, LastSteps, OwnMovement, reader, record
from mlxhog.strategies.round_robin import RoundRobin
from tests.strategies.test_sync import LR, context, facts, strategy

N = 4
PREDICTIONS = {"none": AsTheyAre, "own": OwnMovement, "last": LastSteps}


@pytest.fixture
def arena():
    parameter = SimpleNamespace(shape=(N,), init="zeros", kind="dense")
    extra = strategy(Hogwild, 2, prediction="last").segments(1)
    layout = plan({"w": parameter}, max_workers=2, n_tickets=8, extra=extra)
    with Arena.create(layout) as arena:
        arena.counters.store("command", Command.TRAIN)
        yield arena


def read(result, arena):
    """The first element that a reader reads."""
    dst = np.empty_like(arena.params)
    result.read(dst)
    assert len(set(dst[:N].tolist())) == 1
    return float(dst[0])


def last_steps(arena, last, prev):
    result = record(arena, facts(prediction="last"), 2)
    assert result is not None
    result.last[:N], result.prev[:N] = last, prev


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_worker_reads_the_parameters_as_they_are(arena, prediction):
    last_steps(arena, 5.0, 3.0)
    arena.param("w")[...] = 1.0
    assert read(reader(arena, facts(prediction=prediction), 1), arena) == 1.0
    assert type(reader(arena, facts(prediction=prediction), 2)) is PREDICTIONS[prediction]


def test_last_steps_are_repeated_as_often_as_others_are_expected_to_step(arena):
    result = reader(arena, facts(prediction="last"), 4)
    arena.param("w")[...] = 1.0
    last_steps(arena, 0.5, 0.25)
    step = 0.5 + 0.5 * (0.5 - 0.25)
    assert read(result, arena) == 1.0 + 3 * step  # one of each other worker, at first
    for _ in range(200):
        result.landed(7)
    assert read(result, arena) == pytest.approx(1.0 + 7 * step)
    result.landed(0)
    assert read(result, arena) == pytest.approx(1.0 + 0.9 * 7 * step)


def test_own_movement_is_extrapolated_by_the_share_of_the_others(arena):
    result = reader(arena, facts(prediction="own"), 4)
    arena.param("w")[...] = 2.0
    assert read(result, arena) == 2.0 + 0.75 * 2.0
    assert read(result, arena) == 2.0  # nothing has moved since


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
    result = reader(arena, facts(prediction="own"), 4)
    for _ in range(200):
        result.landed(landed)
    arena.counters.store("version", steps)
    arena.param("w")[...] = 2.0
    assert read(result, arena) == pytest.approx(2.0 + share * 2.0, rel=1e-6)
    arena.counters.add("version", 4)
    arena.param("w")[...] = 3.0
    assert read(result, arena) == 3.0 + 0.75  # between these reads came one of each again


def test_every_step_of_a_worker_is_seen_by_the_next_read_of_another(arena):
    workers = []
    for slot in (1, 2):
        ctx = context(arena, slot, strategy(Hogwild, 2, prediction="last"))
        ctx.budget, ctx.step_limit = Budget(steps=8), 8
        ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
        workers.append(HogwildWorker(ctx))
    one, other = workers
    lease = one.claim()
    assert isinstance(lease, Lease)
    one.read()
    one.write({"w": np.full(N, -2.0, np.float32)}, lease, samples=1)
    other.read()
    moved = 2.0 * LR
    assert other.context.backend.inbox[0] == moved + (moved + 0.5 * moved)


def test_in_turn_copies_are_moved_on_by_the_steps_of_all_others():
    turns = strategy(RoundRobin, 3, seq_len=1, prediction="last")
    parameter = SimpleNamespace(shape=(N,), init="zeros", kind="dense")
    layout = plan({"w": parameter}, max_workers=3, n_tickets=8, extra=turns.segments(1))
    with Arena.create(layout) as arena:
        turns.begin(arena)
        arena.counters.store("command", Command.TRAIN)
        ctx = context(arena, 1, turns)
        ctx.step_limit, ctx.budget = 9, Budget(steps=9)
        ctx.backend = SimpleNamespace(inbox=np.zeros_like(arena.params), refresh=lambda: None)
        worker = turns.worker(ctx)
        lease = worker.claim()
        assert isinstance(lease, Lease)
        worker.read()
        worker.write({"w": np.full(N, -2.0, np.float32)}, lease, samples=1)
        moved = 2.0 * LR
        assert arena.segment("turns.read.1")[0] == moved + 2 * (moved + 0.5 * moved)
