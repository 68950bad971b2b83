"""A link that dies at any line is followed by one that continues from the arena."""

import inspect
import sys

import numpy as np
import pytest

from mlxhog.cluster import round
from mlxhog.cluster.anchor import Anchor
from mlxhog.cluster.round import Outcome
from tests.cluster.machines import Machine, Table, choice
from tests.strategies.deaths import Died

MEAN = choice(outer_lr=1.0, outer_momentum=0.0)
"""With these numbers theta_s is the mean of all movements: its value tells what is in it."""
CODES = {
    function.__name__: function.__code__
    for function in (
        round.play, round._packed, round._after,
        Anchor.read, Anchor.send, Anchor.commit, Anchor.load, Anchor._changing.__wrapped__,
        Anchor.settle,
    )
}  # fmt: skip


def lines():
    """Every line of a round, as (function, its number)."""
    for name, code in CODES.items():
        found = {line for _, _, line in code.co_lines() if line and line > code.co_firstlineno}
        yield from ((name, line) for line in sorted(found))


def dies_at(name, number, times):
    """A trace function that raises where a line is about to run for the n-th time."""
    left = times

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code is CODES[name] and event == "line" and frame.f_lineno == number:
            left -= 1
            if not left:
                sys.settrace(None)
                raise Died
        return trace

    return trace


def dies(one, name, number, times):
    """Play a round that ends at a line; returns whether the line was reached."""
    before = sys.gettrace()
    sys.settrace(dies_at(name, number, times))
    try:
        one.play()
    except Died:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
def test_a_link_that_dies_at_any_line_loses_at_most_its_round(times):
    reached = 0
    for name, number in lines():
        one = Machine(Table(1), "a", MEAN)
        try:
            one.train(1.0)
            one.play()
            one.train(1.0)
            reached += dies(one, name, number, times)
            one.begin_link()
            one.train(0.25)
            assert one.play() is Outcome.COMMITTED
            own = one.own
            assert own.number("committed") == own.trained() - own.number("lost")
            assert own.number("lost") in (0, 100 * own.number("torn"))
            np.testing.assert_array_equal(one.theta, 2.25, err_msg=f"{name} {number}")
            np.testing.assert_array_equal(one.theta, one.theta_s)
        finally:
            one.close()
    assert reached > (50 if times == 1 else 5)


@pytest.mark.slow
def test_a_link_that_dies_while_others_go_on_counts_no_movement_twice():
    """What it has sent may be in their state, and so it is given up."""
    lost = 0
    for name, number in lines():
        dead, other = Machine(Table(1), "a", MEAN), Machine(Table(1), "b", MEAN)
        try:
            for one in (dead, other):
                one.train(1.0)
            other.play()
            dies(dead, name, number, 1)
            dead.begin_link()
            if dead.own.number("round"):
                continue  # it had committed
            dead.own.load(other.own.state())
            given_up = bool(dead.own.number("lost") or dead.own.number("torn"))
            assert dead.own.number("committed") == 0 or dead.own.number("torn")
            expected = 1.0 if given_up else 2.0
            np.testing.assert_allclose(dead.theta, expected, rtol=1e-6, err_msg=name)
            lost += given_up
        finally:
            dead.close()
            other.close()
    assert lost > 5


def test_a_death_within_an_add_begins_at_the_parameters_as_they_are():
    one = Machine(Table(1), "a", choice(outer_lr=0.5, outer_momentum=0.0))
    try:
        one.train(1.0)
        source, first = inspect.getsourcelines(Anchor._changing.__wrapped__)
        (add,) = (first + k for k, line in enumerate(source) if "updates.add(" in line)
        assert dies(one, "_changing", add, 2)
        one.arena.param("b")[...] -= 0.1  # a part of the difference was added
        theta = one.theta
        one.begin_link()
        np.testing.assert_array_equal(one.theta, theta)
        np.testing.assert_array_equal(one.theta_s, theta)
        assert [one.own.number(name) for name in ("torn", "round")] == [1, 0]
    finally:
        one.close()
