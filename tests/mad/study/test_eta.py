import pytest

from mlxhog.mad.study.progress import Eta


def eta(**spent: list[float]) -> Eta:
    made = Eta()
    for kind, seconds in spent.items():
        for value in seconds:
            made.ended(kind, value)
    return made


def test_nothing_is_known_before_a_run_has_ended():
    assert Eta().seconds_left(["recall"]) is None


def test_a_waiting_run_is_expected_to_last_as_long_as_those_of_its_kind():
    assert eta(recall=[10.0, 20.0], copying=[100.0]).seconds_left(["recall"]) == 15.0


def test_a_kind_that_has_not_ended_yet_is_expected_to_last_as_long_as_the_mean_of_all():
    assert eta(recall=[10.0], copying=[30.0]).seconds_left(["memorization"]) == 20.0


def test_work_is_shared_by_what_runs_at_once_but_no_run_is_divided():
    known = eta(recall=[10.0])
    assert known.seconds_left(["recall"] * 4, parallel=2) == 20.0
    assert known.seconds_left([], [("recall", 4.0)], parallel=2) == pytest.approx(6.0)


def test_a_run_that_takes_longer_than_expected_does_not_owe_time():
    assert eta(recall=[10.0]).seconds_left([], [("recall", 50.0)]) == 0.0
