"""`--overlap`: a step is added beside the next gradient, counted as late, and never lost."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig
from mlxhog.arena import control
from mlxhog.arena.control import Command
from mlxhog.arena.ledger import TicketState
from mlxhog.arena.workers import Phase
from mlxhog.config.budget import Budget
from mlxhog.config.rules import Slowdown
from mlxhog.errors import ConfigError
from mlxhog.training import side_jobs, worker
from mlxhog.training.steps import OverlappedSteps
from tests.strategies.runs import LR, context, new_arena, strategy
from tests.threads import wait_until
from tests.training.test_worker import job

TOKENS = 10


def no_work():
    """A gradient that takes no time."""


def overlapped(arena, compute=no_work, budget=None, of=None):
    """Steps of a worker whose gradients are 1, computed while `compute` runs."""
    chosen = of or strategy(overlap=True)
    one = context(arena, 1, chosen)
    one.budget = budget or Budget(steps=9)

    def gradient(batches):
        compute()
        return 1.0, {"w": np.ones(4, np.float32)}

    batch = SimpleNamespace(x=np.zeros((1, TOKENS)), n_tokens=TOKENS, n_labels=TOKENS, n_bytes=40)
    gradients = SimpleNamespace(
        micro_batches=lambda lease: [batch],
        of=gradient,
        slow_down=lambda *_: None,
        slowdown=Slowdown(),
        backend=SimpleNamespace(forward_share=None),
    )
    plan = SimpleNamespace(strategy=chosen, config=TrainConfig(overlap=True))
    ring = control.Ring(np.zeros(control.RING_BYTES, np.uint8))
    return OverlappedSteps(job(slot=1, plan=plan), one, ring, gradients)


@pytest.fixture
def arena():
    with new_arena(strategy(), steps=4) as result:
        yield result


def test_a_step_is_added_and_recorded_while_the_next_gradient_is_computed(arena):
    def compute():
        before = next(gradients)
        wait_until(lambda: entry.steps == before)

    gradients = itertools.count()
    steps = overlapped(arena, compute)
    entry = steps.context.entry
    for _ in range(5):
        steps.step()
    assert (entry.steps, entry.opt_step, entry.phase) == (4, 4, Phase.IDLE)
    assert (entry.staleness_sum, entry.staleness_max) == (3, 1)
    assert steps.ring.drain()["staleness"].tolist() == [0, 1, 1, 1]
    assert arena.param("w").tolist() == [-4 * LR] * 4
    assert arena.counters.load("tokens") == 4 * TOKENS


def test_the_arena_keeps_still_at_a_pause_and_before_any_request(arena):
    steps = overlapped(arena)
    steps.step()
    assert (steps.context.entry.steps, arena.counters.load("version")) == (0, 0)
    arena.counters.store("pause", 1)
    steps.step()
    assert (steps.context.entry.phase, steps.context.entry.steps) == (Phase.WAITING, 1)
    arena.counters.store("pause", 0)
    steps.step()
    arena.counters.add("eval_asked", 1)
    assert side_jobs.takes_on(steps.context, "eval")
    assert steps.context.entry.steps == arena.counters.load("version") == 2
    steps.step()
    jobs = SimpleNamespace(evaluate_rest=no_work)
    assert not worker.follow(Command.EVALUATE, steps, jobs)
    assert steps.context.entry.steps == 3
    assert steps.context.entry.staleness_max == 0  # each was read after the last one's write


def test_an_error_in_a_gradient_leaves_the_step_beside_it_whole_and_counted(arena):
    def compute():
        if computed:
            raise ConfigError("the framework fails")
        computed.append(1)

    computed = []
    steps = overlapped(arena, compute)
    steps.step()
    with pytest.raises(ConfigError, match="the framework fails"):
        steps.step()
    assert steps.context.entry.steps == arena.counters.load("version") == 1
    ledger = steps.context.ledger
    assert ledger.state(0, 0) == TicketState.DONE
    assert ledger.state(0, 1) == TicketState.LEASED  # comes back when its worker is reaped
