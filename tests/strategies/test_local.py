"""Local methods beside the laws: relations to others, replicas, views of the run, resuming."""

import numpy as np
import pytest

from mlxhog.arena.ledger import Ledger
from mlxhog.config.budget import Budget
from mlxhog.models.spec import ParamSpec
from tests.pairs import each_of
from tests.strategies.runs import (
    LR,
    Run,
    begin_step,
    empty_arena,
    end_step,
    first,
    new_arena,
    strategy,
    worker,
)
from tests.strategies.test_laws import H, of_both

W = {"w": ParamSpec("w", (3000,), "zeros")}  # every worker averages a part of it


def test_the_outer_step_is_that_of_torch_sgd_with_nesterov():
    import torch

    run = Run(strategy("diloco", average_every=1), W, of_both, 8)
    run.finish()
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    outer = torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True)
    for round_ in range(4):
        at = theta.item()
        own = [at - LR * of_both(2 * round_ + rank, at) for rank in (0, 1)]
        theta.grad = theta.detach() - sum(own) / 2
        outer.step()
    assert run.model()["w"] == pytest.approx(theta.item(), rel=1e-6)
    run.arena.close()


def take(one):
    """A step by the gradient of a lease's batch."""
    lease = begin_step(one)
    end_step(one, lease, of_both(lease.ticket, float(one.context.backend.inbox[0])))


def test_workers_of_one_replica_train_the_same_copy():
    of = strategy("diloco", 4, replicas=2, average_every=1)
    with new_arena(of) as arena:
        for slot in (1, 2, 3, 4):
            take(worker(arena, slot, of, steps=4))
        one, other = (first(arena, name) for name in of.replica_segments())
        # gradients 1 and 2 at 0 and -0.5; 3 and 4 likewise: the second sees the first's step
        assert one == pytest.approx(-LR * (1 + 2 - 0.25 * LR))
        assert other == pytest.approx(-LR * (3 + 4 - 0.25 * 3 * LR))
        of.settle(arena, Ledger(arena))
        assert first(arena) == pytest.approx(0.7 * 1.9 * (one + other) / 2, rel=1e-6)


def test_the_model_is_the_average_and_each_copy_can_be_evaluated_in_its_place():
    of = strategy("avg_runs")
    with new_arena(of) as arena:
        take(worker(arena, 1, of))
        for name, value in zip(of.own_copies(), (1.0, 3.0), strict=True):
            arena.segment(name)[...] = value
        arena.probe[...] = 7.0
        out = np.zeros_like(arena.params)
        of.load(arena, out, training=True)
        assert (out[0], first(arena)) == (2.0, 0.0)
        of.settle(arena, Ledger(arena))
        with of.each_copy(arena) as loads:
            seen = [(load(), first(arena))[1] for load in loads]
        assert (seen, first(arena)) == ([1.0, 3.0], 2.0)
        assert set(arena.probe.tolist()) == {7.0}  # no part of an average


@each_of(
    ("name", "models"),
    # once, at the end; at 4 and 8 of 9 steps, and at the end; the control variates, too
    [("avg_runs", 1), ("local_sgd", 2 + 1), ("scaffold", 2 * 2 + 1), ("diloco", 2 + 1)],
)
def test_a_network_would_carry_an_all_reduce_for_every_average(name, models):
    for workers in (1, 2):
        run = Run(strategy(name, workers, **({} if name == "avg_runs" else H)), W, of_both, 9)
        run.finish()
        assert run.of.network_bytes(run.arena, 9) == models * 2 * (workers - 1) * 4 * 3000
        run.arena.close()


@each_of(
    ("name", "workers", "before", "now"),
    [
        ("diloco", 2, H, {**H, "replicas": 1}),
        ("sim", 1, {"sim_staleness": "fixed:1"}, {"sim_staleness": "fixed:2"}),
    ],
)
def test_a_run_resumed_with_another_number_of_copies_begins_from_the_model(
    name, workers, before, now
):
    of, other = strategy(name, workers, **before), strategy(name, workers, **now)
    with new_arena(of) as arena, empty_arena(other, W) as resumed:
        state = {**of.state(arena), "ledger": Ledger(arena).position()}
        assert of.resume(resumed, Ledger(resumed), state) is not None
        assert other.resume(resumed, Ledger(resumed), state) is None


def test_the_step_size_of_a_resumed_run_counts_the_tokens_before_it_once():
    of = strategy("avg_runs")
    run = Run(of, W, of_both, 4)
    run.finish()
    with empty_arena(of, W) as resumed:
        resumed.counters.store("version", 4)
        of.begin(resumed, of.position(run.arena))
        budget = Budget(tokens=60, tokens_before=40)
        one = worker(resumed, 1, of, budget=budget, schedule=lambda progress, update: 1 - progress)
        assert one.lr() == pytest.approx(0.6)
