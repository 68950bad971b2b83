"""A round between machines is an outer step of DiLoCo, and the same bits on all of them."""

import inspect
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.cluster import outer_state, round
from mlxhog.cluster.group import ClusterError
from mlxhog.cluster.outer_state import OuterState
from mlxhog.cluster.round import Outcome
from mlxhog.errors import ConfigError
from mlxhog.training.worker.steps import Gradients
from tests.cluster.machines import SHAPES, Machine, Table, choice
from tests.pairs import each_of
from tests.strategies.deaths import dies, places
from tests.strategies.runs import LR, Run, strategy
from tests.strategies.test_laws import PARAMS, of_both
from tests.threads import in_threads

MEAN = {"outer_lr": 1.0, "outer_momentum": 0.0}
"""With these numbers the outer parameters are the mean of all machines' parameters."""
BOTH = [Outcome.COMMITTED] * 2


@pytest.fixture
def machines():
    """Makes machines of one table, and some that start from the checkpoint of another."""
    made = []

    def make(n, **numbers):
        table = Table(n)
        made.extend(Machine(table, name, choice(**numbers)) for name in "abcd"[:n])
        return made[-n:]

    def resumed(one, *, is_last=True):
        arrays, numbers = one.own.saved()
        arrays = {name: value.copy() for name, value in arrays.items()}
        parameters = {name: one.arena.param(name).copy() for name in SHAPES}
        again = Machine(one.table, one.name, one.cluster)
        made.append(again)
        again.own.words["begun"] = 0  # as before its first sidecar
        for name, values in parameters.items():
            again.arena.param(name)[...] = values
        again.own.resume(arrays, numbers, seconds=30.0, is_last=is_last)
        return again

    make.resumed = resumed
    yield make
    for one in made:
        one.close()


def rounds(machines):
    """One round of every machine; an error ends its sidecar, and a new one is made."""
    outcomes = {}
    for one in machines:
        one.table.away.clear()

    def play(one):
        try:
            outcomes[one.name] = one.play()
        except (ClusterError, ConfigError) as error:
            one.table.lose(one.name)
            outcomes[one.name] = error
            one.restart()

    in_threads(play, machines)
    return [outcomes[one.name] for one in machines]


def train(machines, step=1.0, **how):
    for one in machines:
        one.train(step, **how)


def have(machines, *values):
    """Every parameter of each machine is its value, or the one value of all."""
    for one, value in zip(machines, values * (len(machines) // len(values)), strict=True):
        np.testing.assert_allclose(one.theta, value, rtol=1e-6)


def words(machines, name):
    return [one.own.words[name] for one in machines]


def test_rounds_of_two_stopped_machines_equal_diloco_in_one_process(machines):
    of = strategy("diloco", average_every=1)
    pair = machines(2, outer_momentum=0.9)
    for k in range(6):
        for rank, one in enumerate(pair):
            one.train(-LR * of_both(2 * k + rank, float(one.theta[0])))
        assert rounds(pair) == BOTH
    run = Run(of, PARAMS, of_both, 12)
    run.finish()
    expected = run.model()["a"]
    run.arena.close()
    assert expected != 0.0
    have(pair, expected)


def test_outer_parameters_have_the_same_bits_on_all_machines_after_every_round(machines):
    team, rng = machines(3), np.random.default_rng(0)
    for _ in range(5):
        for one in team:
            one.train(float(rng.normal()), tokens=int(rng.integers(1, 10**6)))
        assert rounds(team) == [Outcome.COMMITTED] * 3
        assert len({one.own.state().digest for one in team}) == 1
        assert len(set(words(team, "tokens"))) == 1
    assert team[0].own.words["tokens"] == sum(one.own.trained() for one in team)


def test_what_workers_add_during_a_round_stays_and_goes_into_the_next(machines):
    def meanwhile(buffer, exact):
        pair[0].group.average = average
        pair[0].train(0.5)
        return average(buffer, exact)

    pair = machines(2, **MEAN)
    pair[0].train(1.0, tokens=300)
    pair[1].train(5.0, tokens=100)
    rounds(pair)
    have(pair, 2.0)  # machines weigh by their tokens
    average, pair[0].group.average = pair[0].group.average, meanwhile
    train(pair, -1.0)
    rounds(pair)
    have(pair, 1.5, 1.0)
    pair[1].train(0.5)
    rounds(pair)
    have(pair, 1.5)


def test_a_machine_that_missed_rounds_loads_the_outer_parameters_and_keeps_its_own_movement(
    machines, monkeypatch
):
    monkeypatch.setattr(outer_state, "monotonic_ns", lambda: 40 * 10**9)
    pair = machines(2, **MEAN)
    a, b = pair
    a.table.expected = 1
    a.arena.counters.store("start_ns", 10 * 10**9)
    train(pair)
    rounds([a])
    a.train(1.0)
    rounds([a])  # a is at 2, b at its own 1 of round 0
    a.table.expected = 2
    rounds(pair)
    assert (b.own.words["loads"], b.own.words["lost"]) == (1, 0)
    have(pair, 3.0)
    assert words(pair, "tokens") == [300, 300]
    # and with it the position of the schedule
    assert [one.arena.counters.load("tokens_elsewhere") for one in pair] == [100, 200]
    assert [one.own.seconds() for one in pair] == [30.0, 30.0]


def test_a_machine_alone_commits_no_round_before_it_is_due(machines):
    (one,) = machines(1)
    one.train(1.0)
    assert one.play(is_due=False) is Outcome.EARLY
    assert one.own.words["round"] == 0
    assert one.own.report()["tokens_waiting"] == 100
    assert one.play() is Outcome.COMMITTED
    assert one.own.report()["tokens_committed"] == 100


def test_each_machine_reads_the_text_in_an_order_of_its_own(machines):
    def batch(machine):
        plan = SimpleNamespace(batches=lambda: SimpleNamespace(at=lambda *at: at), sidecar=machine)
        job = SimpleNamespace(plan=plan, slot=1, config=SimpleNamespace(inject_stragglers=None))
        return Gradients(job, machine.arena, None, None)._batch(3, 7)

    (first, ticket), (second, _) = map(batch, machines(2))
    assert first != second
    assert ticket == 7
    assert 3 <= min(first, second)
    assert max(first, second) < 2**32


def test_a_member_that_is_lost_in_the_average_leaves_the_others_round_uncommitted(machines):
    def lost(buffer, exact):
        raise ClusterError("it cannot reach the others")

    pair = machines(2)
    pair[1].group.average = lost
    before = pair[0].own.state().digest
    train(pair)
    refused, error = rounds(pair)
    assert refused is Outcome.REFUSED
    assert isinstance(error, ClusterError)
    assert pair[0].own.state().digest == before
    have(pair[:1], 1.0)
    assert rounds(pair) == BOTH
    assert pair[0].own.words["tokens"] == 200
    assert words(pair, "lost") == [0, 0]


def test_members_of_unequal_outer_parameters_drop_the_round_and_take_that_of_the_first(machines):
    pair = machines(2)
    rounds(pair)
    pair[1].own.of("params")[3] += 1
    assert rounds(pair) == [Outcome.REFUSED] * 2
    assert words(pair, "unequal") == [1, 1]
    assert rounds(pair) == BOTH
    assert len({one.own.state().digest for one in pair}) == 1


def test_parameters_that_are_not_finite_do_not_reach_the_others(machines):
    pair = machines(2)
    pair[1].train(float("nan"))
    pair[0].train(1.0)
    refused, error = rounds(pair)
    assert refused is Outcome.REFUSED
    assert "not finite" in str(error)
    assert np.isfinite(pair[0].theta).all()


WRONG_STATES = {
    "parameters that are not finite": {"params": np.nan},
    "parameters of 3e38": {"params": 3e38},
    "a velocity of 1e6": {"velocity": 1e6},
    "a velocity of another size": {"velocity": [0.0, 0.0]},
    "tokens below zero": {"tokens": -(2**62)},
    "tokens of centuries": {"tokens": 2**62},
    "tokens that are a text": {"tokens": "9"},
    "seconds below zero": {"seconds": -1.0},
    "seconds of ages": {"seconds": 1e300},
    "seconds that are not a number": {"seconds": float("nan")},
    "no round": {"round": True},
    "a round that none has committed": {"round": 2**62},
}
WRONG_BUFFERS = [
    # place, or None for all parameters; value that the member 'b' sends there; message
    (None, 3e38 / 100, "outer gradient of 'b' has the root mean square inf"),
    (3, 1e30, "outer gradient of 'b' has .*, expected up to"),
    (None, 1e6, "outer gradient of 'b' has the root mean square 5e.03"),
    (0, np.nan, "the mean of the members has values that are not finite"),
    (-1, np.nan, "the mean of the members has values that are not finite"),
    (-1, -3e9, "machine 'b' counts -3,.* tokens"),
    (-2, -(2**62), "machine 'b' counts -1.* tokens"),
    (-2, 3e38, "machine 'b' counts .* tokens, expected 0 to"),
    (-3, 50, "150 tokens of this machine arrived, which sent"),
]


def refuses(team, message):
    """Play a round that the first machine refuses, with the message, and keeps its own state."""
    one = team[0]
    before = one.own.state().digest, one.own.words["tokens"], one.theta
    error = str(rounds(team)[0])
    assert re.search(message, error)
    assert "Give the token only to machines of this run" in error
    assert (one.own.state().digest, one.own.words["tokens"]) == before[:2]
    np.testing.assert_array_equal(one.theta, before[2])


@each_of("wrong", WRONG_STATES.values(), ids=WRONG_STATES)
def test_a_state_that_does_not_fit_is_refused_and_training_continues(machines, wrong):
    (one,) = machines(1)
    train([one])
    rounds([one])
    own, state = one.own.state(), dict(wrong)
    for name in {"params", "velocity"} & wrong.keys():
        value = np.asarray(wrong[name], np.float32)
        state[name] = np.broadcast_to(value, value.shape or own.params.shape).copy()
    one.group.state = lambda: replace(own, **state)
    refuses([one], "the state of another member, of round")
    one.train(1.0)
    assert rounds([one]) == [Outcome.COMMITTED]
    assert (one.own.seconds(), one.own.words["lost"]) == (0.0, 0)


@each_of(("place", "value", "message"), WRONG_BUFFERS)
def test_a_member_that_sends_nonsense_is_named_and_its_round_dropped(
    machines, place, value, message
):
    def lie(buffer, exact):
        buffer[slice(pair[1].own.n) if place is None else place] = value
        return average(buffer, exact)

    pair = machines(2)
    train(pair)
    rounds(pair)
    train(pair, 0.5)
    average, pair[1].group.average = pair[1].group.average, lie
    refuses(pair, f"{message}.*the round is dropped, and this machine keeps its own state")
    pair[1].restart()  # without lies
    assert rounds(pair) == BOTH
    assert np.isfinite(value) or words(pair, "lost") == [0, 0]


def test_no_number_of_rounds_leads_parameters_to_infinity(machines):
    (one,) = machines(1)
    errors = []
    for _ in range(9):
        one.train(99 * max(0.1, float(np.abs(one.theta).max())))
        errors += [error for error in rounds([one]) if isinstance(error, ClusterError)]
    assert np.abs(one.outer).max() < 1e5
    assert "this machine" in str(errors[0])


def commit_in_the_first_only(pair):
    """A round with 100 tokens of each, whose end the second of two machines does not learn."""
    train(pair)
    average = pair[1].group.average
    pair[1].group.average = lambda *words: average(*words) and False
    assert rounds(pair) == [Outcome.COMMITTED, Outcome.REFUSED]
    pair[1].restart()


def test_a_round_that_one_member_commits_and_another_does_not_see_counts_once(machines):
    pair = machines(2, **MEAN)
    commit_in_the_first_only(pair)
    pair[1].train(1.0)
    rounds(pair)
    assert words(pair, "committed") == [100, 100]
    assert [one.own.round_tokens for one in pair] == [0, 100]  # of the last round only
    assert words(pair, "lost") == [0, 100]  # it does not know of it
    assert words(pair, "tokens") == [300, 300]
    have(pair, 2.0)


def test_what_a_machine_commits_alone_again_in_the_same_round_is_given_up(machines):
    pair = machines(2, **MEAN)
    commit_in_the_first_only(pair)
    pair[0].table.expected = 1
    pair[1].train(1.0, tokens=70)
    rounds(pair[1:])  # the same round, with what the first one has and more
    assert pair[1].own.words["committed"] == 170
    pair[0].table.expected = 2
    assert rounds(pair) == [Outcome.REFUSED] * 2
    assert rounds(pair) == BOTH
    assert pair[0].own.words["tokens"] == 200
    have(pair, 1.0)


def test_a_checkpoint_has_the_outer_parameters_and_the_momentum_of_any_machine(machines):
    pair = machines(2)
    train(pair)
    rounds(pair)
    again = machines.resumed(pair[0])
    assert again.own.state().digest == pair[1].own.state().digest
    np.testing.assert_array_equal(again.own.of("velocity"), pair[1].own.of("velocity"))
    assert again.own.words["tokens"] == 200
    assert again.arena.counters.load("tokens_elsewhere") == 100
    assert again.own.seconds() == 30.0


def test_sidecars_and_resumed_runs_of_a_machine_have_its_id_and_a_copy_elsewhere_another(
    machines, monkeypatch
):
    one, again, copy = machines(3)
    id, saved = one.own.words["id"], one.own.saved()
    one.restart()
    again.own.resume(*saved, seconds=0.0, is_last=True)
    monkeypatch.setattr("platform.node", lambda: "another")
    copy.own.resume(*saved, seconds=0.0, is_last=True)
    assert words([one, again], "id") == [id, id]
    assert 0 < id != copy.own.words["id"]


def test_the_movement_of_a_checkpoint_waits_for_the_first_tokens_and_goes_with_them(machines):
    pair = machines(2, **MEAN)
    pair[0].train(1.0)
    again = machines.resumed(pair[0])
    team = [again, pair[1]]
    assert rounds(team) == BOTH  # before any worker has ended a step
    have([again], 1.0)
    again.train(1.0)
    assert rounds(team) == BOTH
    have(team, 2.0)


@each_of("is_last", [True, False])
def test_a_movement_in_an_old_checkpoint_that_others_may_have_is_not_sent_again(machines, is_last):
    (one,) = machines(1, **MEAN)
    one.train(1.0)
    again = machines.resumed(one, is_last=is_last)
    for _ in range(2):
        rounds([one])  # the cluster commits the movement of the checkpoint
        one.train(1.0)
    again.own.merge(one.own.state())
    np.testing.assert_array_equal(again.outer, 2.0)
    have([again], 3.0 if is_last else 2.0)


def test_a_movement_that_was_sent_before_a_checkpoint_is_not_sent_again(machines):
    pair = machines(2, **MEAN)
    commit_in_the_first_only(pair)
    again = machines.resumed(pair[1])
    again.own.merge(pair[0].own.state())
    np.testing.assert_array_equal(again.outer, 1.0)
    have([again], 1.0)


dies = partial(dies, folders=(outer_state.__file__, round.__file__))
places = partial(places, folders=(outer_state.__file__, round.__file__))


@pytest.fixture
def machine(machines):
    """Makes machines that have trained; the outer value tells what is in it."""

    def make(**numbers):
        (one,) = machines(1, **MEAN | numbers)
        one.train(1.0)
        return one

    return make


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
def test_a_sidecar_that_dies_at_any_line_loses_at_most_its_round(machine, times):
    counts = places(machine().play)
    for place in [place for place, n in counts.items() if n >= times]:
        one = machine()
        one.play()
        one.train(1.0)
        dies(one.play, place, times)
        one.restart()
        one.train(0.25)
        assert one.play() is Outcome.COMMITTED
        own = one.own
        assert own.words["committed"] == own.trained() - own.words["lost"]
        assert own.words["lost"] in (0, 100 * own.words["torn"])
        np.testing.assert_array_equal(one.theta, 2.25, err_msg=str(place))
        np.testing.assert_array_equal(one.theta, one.outer)


@pytest.mark.slow
def test_a_sidecar_that_dies_while_others_go_on_counts_no_movement_twice(machine):
    """What it has sent may be in their state, and so it is given up."""
    lost = 0
    for place in places(machine().play):
        dead, other = machine(), machine()
        other.play()
        dies(dead.play, place)
        dead.restart()
        if dead.own.words["round"]:
            continue  # it had committed
        dead.own.merge(other.own.state())
        given_up = bool(dead.own.words["lost"] or dead.own.words["torn"])
        assert dead.own.words["committed"] == 0 or dead.own.words["torn"]
        np.testing.assert_allclose(dead.theta, 1.0 if given_up else 2.0, rtol=1e-6)
        lost += given_up
    assert lost > 5


def test_a_death_within_an_add_begins_at_the_parameters_as_they_are(machine):
    one = machine(outer_lr=0.5)
    source, first = inspect.getsourcelines(OuterState._apply)
    (add,) = (first + k for k, line in enumerate(source) if "updates.add(" in line)
    assert dies(one.play, (outer_state.__file__, add), 2)
    one.arena.param("b")[...] -= 0.1  # a part of the difference was added
    theta = one.theta
    one.restart()
    np.testing.assert_array_equal(one.theta, theta)
    np.testing.assert_array_equal(one.outer, theta)
    assert [one.own.words[name] for name in ("torn", "round")] == [1, 0]
