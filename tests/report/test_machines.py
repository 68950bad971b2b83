"""The machines of a cluster, as one of them sees them."""

import pytest

from mlxhog.arena import Arena
from mlxhog.arena.layout import plan
from mlxhog.report import machines
from mlxhog.report.machines import Roster

HERE = {"id": 7, "name": "studio", "tokens": 1_200_000, "rounds": 40, "seen_s": 0.0}
AWAY = {"id": 9, "name": "air", "tokens": 300_000, "rounds": 12, "seen_s": 90.0}


@pytest.fixture
def roster():
    arena = Arena.create(plan({}, max_workers=1, n_tickets=8, extra=machines.segment()))
    one = Roster(arena)
    yield one
    del one
    arena.close()


def test_a_machine_is_in_the_quorum_away_or_alone(roster):
    assert roster.reports() == ()
    for members, is_alone, here, away in (
        ([7], False, "in the quorum", "away"),
        ([7, 9], False, "in the quorum", "in the quorum"),
        ([7, 9], True, "alone", "away"),
        ([], False, "alone", "away"),  # fewer members than the quorum
    ):
        roster.write([AWAY, HERE], members, 7, {})
        roster.is_alone = is_alone
        states = {one.name: one.state for one in roster.reports()}
        assert states == {"studio": here, "air": away}


def test_a_machine_that_a_new_lighthouse_does_not_know_stays_and_grows_older(roster):
    roster.write([HERE, AWAY], [7, 9], 7, {"clock": "off"})
    roster.write([HERE], [7], 7, {})
    away = roster.reports()[1]
    assert (away.name, away.state, away.rounds) == ("air", "away", 12)
    assert away.seen_s > 90.0
    assert roster.notes() == {"clock": "off"}


def test_machines_of_one_name_are_told_apart_and_have_no_control_characters(roster):
    others = [{**AWAY, "name": "studio"}, {**AWAY, "id": 8, "name": "a\x1b[2J"}]
    roster.write([HERE, *others], [7], 7, {})
    assert [one.name for one in roster.reports()] == ["studio", "a [2J", "studio (2)"]
