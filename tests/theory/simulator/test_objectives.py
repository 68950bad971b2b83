"""Toy problems: gradients, minima, and what schemes make of them."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog.theory.simulator import Simulation
from mlxhog.theory.simulator.machine import Event
from mlxhog.theory.simulator.objectives import Learner, Quadratic
from mlxhog.theory.simulator.schemes import Hogwild, RoundRobin, Sync
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.what_if import SimulateConfig, best_time
from mlxhog.theory.simulator.workers import Worker

BOWL = Quadratic((1.0, 0.5, 0.1))


def learned(scheme, workers, updates, **options):
    learner = Learner(BOWL, lr=0.1, **options)
    those = [Worker(name="w", compute=times_of("constant", 1.0))] * workers
    Simulation(those, scheme, learner=learner).run_until(updates)
    return learner


def test_one_worker_without_noise_is_gradient_descent():
    expected = (1 - 0.1 * np.array(BOWL.curvatures)) ** 30
    assert learned(Hogwild(), 1, 30).model == pytest.approx(expected)


def test_a_round_of_sync_is_one_step_of_the_mean_gradient():
    expected = (1 - 0.1 * np.array(BOWL.curvatures)) ** 30
    assert learned(Sync(), 4, 30).model == pytest.approx(expected)


def test_a_late_gradient_is_taken_where_it_was_read():
    x, h = [np.ones(3)] * 3, np.array(BOWL.curvatures)
    for _ in range(30):  # x(t + 1) = x(t) - lr h x(t - 2), from the first read of all three on
        x.append(x[-1] - 0.1 * h * x[-3])
    assert learned(RoundRobin(), 3, 30).model == pytest.approx(x[-1])


def test_the_time_to_a_loss_is_of_the_cores_and_the_workers_that_there_are():
    four = [Worker(name="w", compute=times_of("constant", 0.1))] * 4
    config = SimulateConfig(updates=400, seed=1)
    free = best_time(four, Hogwild(), BOWL, config)
    assert best_time(four, Hogwild(), BOWL, replace(config, cores=1)) > 3 * free
    dead = [Event(0.05, rank, joins=False) for rank in (1, 2, 3)]
    assert best_time(four, Hogwild(), BOWL, config, dead) > free
