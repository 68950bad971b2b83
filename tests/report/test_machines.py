"""Every view of a run shows the machines of its cluster."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from mlxhog.arena import Arena
from mlxhog.arena.layout import plan
from mlxhog.base.typed import fill
from mlxhog.report import machines
from mlxhog.report.machines import Roster
from mlxhog.report.metrics import Progress
from mlxhog.report.plain import line
from mlxhog.report.terminal import Picture
from tests.report.sample_run import PROGRESS

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


def test_machines_of_one_name_are_told_apart_and_every_view_shows_them_without_control_characters(
    roster,
):
    others = [{**AWAY, "name": "studio"}, {**AWAY, "id": 8, "name": "a\x1b[2J"}]
    roster.write([HERE, *others], [7], 7, {})
    several = replace(PROGRESS, machines=roster.reports())
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(Picture(several))
    text, one = console.export_text(), line(several)
    assert "studio (this one)  in the quorum" in text
    for shown in (text, one):
        assert "studio (2)" in shown
        assert "away, 300k tokens in 12 rounds, seen 1 min 30 s ago" in shown
        assert "\x1b" not in shown
    assert fill(Progress, json.loads(json.dumps(several.to_json()))).machines == several.machines
