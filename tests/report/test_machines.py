"""Every view of a run shows the machines of its cluster."""

import io
import json
from dataclasses import replace

from rich.console import Console

from mlxhog.base.typed import fill
from mlxhog.cluster.group import Machine, Membership, Roster
from mlxhog.report.metrics import Progress
from mlxhog.report.plain import line
from mlxhog.report.terminal import Picture
from tests.report.sample_run import PROGRESS

HERE = Machine(7, "studio", 1_200_000, 40)
AWAY = Machine(9, "air", 300_000, 12, seen_s=90.0)


def met(roster, machines, members):
    roster.meet(Membership(0, 0, members, machines), HERE)
    return {one.name: one for one in roster.reports()}


def test_a_machine_is_in_the_quorum_away_or_alone_and_a_forgotten_one_grows_older():
    roster = Roster()
    assert roster.reports() == ()
    for members, is_alone, here, away in (
        ((7,), False, "in the quorum", "away"),
        ((7, 9), False, "in the quorum", "in the quorum"),
        ((7, 9), True, "alone", "away"),
    ):
        roster.is_alone = is_alone
        states = {name: one.state for name, one in met(roster, (AWAY, HERE), members).items()}
        assert states == {"studio": here, "air": away}
    away = met(roster, (HERE,), (7,))["air"]  # a new lighthouse does not know it
    assert (away.state, away.rounds) == ("away", 12)
    assert away.seen_s > 90.0


def test_machines_of_one_name_are_told_apart_and_every_view_shows_them_without_control_characters():
    roster = Roster()
    met(roster, (HERE, replace(AWAY, name="studio"), replace(AWAY, id=8, name="a\x1b[2J")), (7,))
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
