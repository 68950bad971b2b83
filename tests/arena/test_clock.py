"""The clock that worker, monitor and supervisor of a run read."""

import math

import numpy as np
import pytest

from mlxhog.arena import clock
from mlxhog.arena.clock import Clock
from mlxhog.arena.control import COUNTERS


@pytest.fixture
def now(monkeypatch):
    """The time in seconds, which a test changes."""
    times = [100.0]
    monkeypatch.setattr(clock, "monotonic_ns", lambda: int(times[0] * 1e9))
    return times


@pytest.fixture
def counters():
    return COUNTERS.open(np.zeros(COUNTERS.n_bytes, np.uint8))


def test_all_that_share_an_arena_read_the_same_time(now, counters):
    supervisor, worker = Clock(counters, 60.0), Clock(counters, 60.0)
    assert (worker.has_started, worker.seconds(), worker.left_s()) == (False, 0.0, 60.0)
    supervisor.stop()  # before its start
    supervisor.start()
    now[0] += 45.0
    assert (worker.seconds(), worker.left_s()) == (45.0, 15.0)
    supervisor.stop()
    now[0] += 45.0
    supervisor.stop()
    assert (worker.seconds(), worker.left_s()) == (45.0, 15.0)


def test_a_step_fits_if_it_ends_before_the_deadline(now, counters):
    limited, endless = Clock(counters, 60.0), Clock(counters, None)
    limited.start()
    now[0] += 50.0
    assert [limited.fits(step_s) for step_s in (9.9, 10.0)] == [True, False]
    now[0] += 50.0
    assert (limited.left_s(), endless.left_s(), endless.fits(1e9)) == (0.0, math.inf, True)


def test_after_the_deadline_a_step_may_run_on_for_its_own_time_and_a_first_one_longer(counters):
    assert Clock(counters, 60.0).grace_s(0.0) == clock.FIRST_STEP_S
    counters.store("steps", 1)
    graces = [Clock(counters, 60.0).grace_s(step_s) for step_s in (0.1, 8.0)]
    assert graces == [clock.GRACE_S, 8.0]
