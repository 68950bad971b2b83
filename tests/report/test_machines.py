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
from mlxhog.report.metrics import MachineReport, Progress
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


def states(roster):
    return {one.name: one.state for one in roster.reports()}


def test_a_machine_is_in_the_quorum_away_or_alone(roster):
    assert roster.reports() == ()
    roster.write([AWAY, HERE], [7], 7, {})
    assert states(roster) == {"studio": "in the quorum", "air": "away"}
    roster.write([HERE, AWAY], [7, 9], 7, {})
    assert states(roster) == {"studio": "in the quorum", "air": "in the quorum"}
    roster.is_alone = True
    assert states(roster) == {"studio": "alone", "air": "away"}
    roster.is_alone = False
    roster.write([HERE], [], 7, {})  # fewer members than the quorum
    assert states(roster) == {"studio": "alone", "air": "away"}


def test_a_machine_that_a_new_lighthouse_does_not_know_stays_and_grows_older(roster):
    roster.write([HERE, AWAY], [7, 9], 7, {"clock": "off"})
    roster.write([HERE], [7], 7, {})
    away = roster.reports()[1]
    assert (away.name, away.state, away.rounds) == ("air", "away", 12)
    assert away.seen_s > 90.0
    assert roster.notes() == {"clock": "off"}


def test_two_machines_of_one_name_are_told_apart_and_control_characters_are_not_shown(roster):
    others = [{**AWAY, "name": "studio"}, {**AWAY, "id": 8, "name": "a\x1b[2J"}]
    roster.write([HERE, *others], [], 7, {})
    names = [one.name for one in roster.reports()]
    assert names[0] == "studio"
    assert "studio (2)" in names
    assert not any("\x1b" in name for name in names)


def test_the_live_table_a_line_and_json_show_machines():
    here, away = (
        MachineReport(name=name, state=state, tokens=tokens, rounds=12, seen_s=90.0, is_own=is_own)
        for name, state, tokens, is_own in (
            ("studio", "in the quorum", 1_200_000, True), ("air", "away", 300_000, False),
        )
    )  # fmt: skip
    two = replace(PROGRESS, machines=(here, away))
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(Picture(two))
    text = console.export_text()
    assert "studio (this one)  in the quorum" in text
    assert "1 min 30 s ago" in text
    assert "[air away, 300k tokens in 12 rounds, seen 1 min 30 s ago]" in line(two)
    assert fill(Progress, json.loads(json.dumps(two.to_json()))).machines == two.machines
