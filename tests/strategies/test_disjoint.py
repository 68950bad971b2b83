"""Block-disjoint workers: the holders of groups, and that concurrent updates never overlap."""

import numpy as np
import pytest

from mlxhog.arena.process import monotonic_ns
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.strategies.disjoint import block_groups
from tests.models.sample import config
from tests.pairs import each_of
from tests.strategies.runs import ONE, begin_step, full, new_arena, strategy
from tests.strategies.runs import worker as one_of
from tests.threads import in_threads

MODEL = config(num_hidden_layers=4)
WORKERS = 3


def disjoint(**more):
    return strategy("hogwild", WORKERS, blocks="disjoint", **more)


@pytest.fixture
def arena():
    with new_arena(disjoint(), families.param_spec(MODEL), n_tickets=4096) as arena:
        yield arena


@pytest.fixture(autouse=True)
def _turns(monkeypatch):
    monkeypatch.setattr("mlxhog.strategies.disjoint.ROTATE_EVERY", 2)


def worker(arena, slot, **more):
    return one_of(arena, slot, disjoint(**more), steps=10_000, model=MODEL)


def take_step(worker):
    """One step; returns the names of the parameters that it wrote."""
    lease, arena = begin_step(worker), worker.context.arena
    before = {name: arena.param(name).copy() for name in arena.layout.slots}
    worker.write(full(arena, 1.0), lease, ONE)
    return frozenset(name for name in before if (arena.param(name) != before[name]).any())


@pytest.mark.parametrize(("reset", "count"), [(False, 7), (True, 0)])
def test_an_optimizer_that_begins_anew_counts_its_steps_anew(arena, reset, count):
    kind = disjoint(reset_optimizer=reset, **({"resume": "latest"} if reset else {}))
    kind.restore_state(arena, {"block_steps": dict.fromkeys(arena.layout.slots, 7)})
    assert kind.steps_taken(arena) == dict.fromkeys(arena.layout.slots, count)


def test_a_worker_writes_its_own_blocks_alone_visits_all_and_leaves_the_last_to_its_heir(arena):
    alone = worker(arena, 1)
    written = [take_step(alone) for _ in range(8)]
    assert written[0::2] == written[1::2]  # two steps in each place
    visited = written[0::2]
    assert len(set(visited)) == 4
    assert sorted(name for part in visited for name in part) == sorted(arena.layout.slots)
    arena.workers.mark_dead(1)
    assert take_step(worker(arena, 1)) == visited[-1]


def test_updates_that_overlap_in_time_never_write_a_common_parameter(arena):
    steps = []

    def train(slot, mine):
        grads = full(arena, 1.0)
        for _ in range(60):
            lease = begin_step(mine)
            begin = monotonic_ns()  # the group is its own from the claim on
            params = mine._params[mine.held]
            mine.write(grads, lease, ONE)
            steps.append((begin, monotonic_ns(), slot, params))

    workers = {k + 1: worker(arena, k + 1) for k in range(WORKERS)}
    in_threads(lambda slot: train(slot, workers[slot]), workers)
    assert len(steps) == 60 * WORKERS
    side_by_side = [
        (a[3], b[3]) for a in steps for b in steps if a[2] < b[2] and a[0] < b[1] and b[0] < a[1]
    ]
    assert not any(a & b for a, b in side_by_side)
    # Nothing was lost either: every update of a block is in its sum and in its count.
    for name, count in disjoint().steps_taken(arena).items():
        assert count == sum(name in params for *_, params in steps)
        np.testing.assert_array_equal(arena.param(name), -0.5 * count)


def test_the_gradient_is_clipped_by_the_norm_of_the_workers_own_blocks(arena):
    written = take_step(worker(arena, 1, clip=1.0))
    step = np.concatenate([arena.param(name).reshape(-1) for name in written])
    np.testing.assert_allclose(np.linalg.norm(step), 0.5, rtol=1e-4)  # lr times the largest norm


@each_of("model", ("tiny", "mad-7to1-v1", "125m"))
@each_of("workers", [1, 2, 3])
def test_every_parameter_is_in_one_group(model, workers):
    cfg = load_architecture(model)
    result = block_groups(cfg, workers)
    assert len(result) == (workers + 1 if workers > 1 else 1)
    names = [name for group in result for block in group for name in block.params]
    assert sorted(names) == sorted(families.param_spec(cfg))
    sizes = [sum(block.size for block in group) for group in result]
    assert min(sizes) > 0
    assert model != "125m" or max(sizes) < 2 * min(sizes)  # of equal layers
