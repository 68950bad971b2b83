"""The machines of a cluster, as one of them sees them."""

from dataclasses import replace

from mlxhog.cluster.group import Machine, Membership, Roster

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


def test_machines_of_one_name_are_told_apart_and_have_no_control_characters():
    others = replace(AWAY, name="studio"), replace(AWAY, id=8, name="a\x1b[2J")
    assert [*met(Roster(), (HERE, *others), (7,))] == ["studio", "a [2J", "studio (2)"]
