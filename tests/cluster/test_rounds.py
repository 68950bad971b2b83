"""The audit of recorded rounds finds what must not be there."""

import pytest

from tests.cluster.rounds import Audit, is_balanced


def line(number, tokens, cluster_tokens, theta_s="a"):
    return {
        "round": number, "members": 2, "tokens": tokens, "cluster_tokens": cluster_tokens,
        "theta_s": theta_s,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([line(0, 5, 15), line(1, 1, 18)], Audit(rounds=2)),
        ([line(0, 5, 15), line(1, 1, 18, "b")], Audit(rounds=2, unequal=1)),
        ([line(0, 5, 15), line(1, 1, 19)], Audit(rounds=2, unequal=1)),
        ([line(0, 5, 15), line(1, 2, 18)], Audit(rounds=2, unbalanced=1)),
        ([line(0, 5, 15)], Audit(rounds=2, partial=1)),
    ],
)
def test_rounds_that_differ_or_do_not_add_up_are_counted(second, expected):
    assert Audit.of([[line(0, 10, 15), line(1, 2, 18)], second]) == expected


def test_a_run_whose_tokens_are_not_all_counted_is_out_of_balance():
    part = {"tokens_committed": 5, "tokens_lost": 2, "tokens_waiting": 1}
    assert is_balanced({**part, "tokens_trained": 8})
    assert not is_balanced({**part, "tokens_trained": 9})
    assert not is_balanced({**part, "tokens_waiting": -1, "tokens_trained": 6})  # committed twice
