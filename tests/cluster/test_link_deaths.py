"""A link that dies at any line of a round is followed by one that continues from the arena."""

import inspect
from functools import partial

import numpy as np
import pytest

from mlxhog.cluster import anchor, round
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.round import Outcome
from tests.cluster.machines import Machine, Table, choice
from tests.strategies.deaths import dies, places

MEAN = choice(outer_lr=1.0, outer_momentum=0.0)
"""With these numbers theta_s is the mean of all movements: its value tells what is in it."""
dies = partial(dies, folders=(anchor.__file__, round.__file__))
places = partial(places, folders=(anchor.__file__, round.__file__))


@pytest.fixture
def machine():
    """Makes machines, each at a table of its own."""
    made = []

    def make(name="a", cluster=MEAN):
        made.append(Machine(Table(1), name, cluster))
        made[-1].train(1.0)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
def test_a_link_that_dies_at_any_line_loses_at_most_its_round(machine, times):
    counts = places(machine().play)
    for place in [place for place, n in counts.items() if n >= times]:
        one = machine()
        one.play()
        one.train(1.0)
        dies(one.play, place, times)
        one.begin_link()
        one.train(0.25)
        assert one.play() is Outcome.COMMITTED
        own = one.own
        assert own.words["committed"] == own.trained() - own.words["lost"]
        assert own.words["lost"] in (0, 100 * own.words["torn"])
        np.testing.assert_array_equal(one.theta, 2.25, err_msg=str(place))
        np.testing.assert_array_equal(one.theta, one.theta_s)


@pytest.mark.slow
def test_a_link_that_dies_while_others_go_on_counts_no_movement_twice(machine):
    """What it has sent may be in their state, and so it is given up."""
    lost = 0
    for place in places(machine().play):
        dead, other = machine(), machine("b")
        other.play()
        dies(dead.play, place)
        dead.begin_link()
        if dead.own.words["round"]:
            continue  # it had committed
        dead.own.load(other.own.state())
        given_up = bool(dead.own.words["lost"] or dead.own.words["torn"])
        assert dead.own.words["committed"] == 0 or dead.own.words["torn"]
        np.testing.assert_allclose(dead.theta, 1.0 if given_up else 2.0, rtol=1e-6)
        lost += given_up
    assert lost > 5


def test_a_death_within_an_add_begins_at_the_parameters_as_they_are(machine):
    one = machine(cluster=choice(outer_lr=0.5, outer_momentum=0.0))
    source, first = inspect.getsourcelines(Anchor._take)
    (add,) = (first + k for k, line in enumerate(source) if "updates.add(" in line)
    assert dies(one.play, (anchor.__file__, add), 2)
    one.arena.param("b")[...] -= 0.1  # a part of the difference was added
    theta = one.theta
    one.begin_link()
    np.testing.assert_array_equal(one.theta, theta)
    np.testing.assert_array_equal(one.theta_s, theta)
    assert [one.own.words[name] for name in ("torn", "round")] == [1, 0]
