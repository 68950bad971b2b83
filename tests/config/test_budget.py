"""How a budget of time is shared out."""

import pytest

from mlxhog.config.budget import training_s


@pytest.mark.parametrize(
    ("seconds", "start_s", "save_s", "evaluates", "expected"),
    [
        (60.0, 3.0, 0.1, False, 60.0),
        (60.0, 3.0, 0.1, True, 57.0),  # a twentieth is kept for the last evaluation,
        (3600.0, 3.0, 0.1, True, 3580.0),  # 20 s at most
        (60.0, 8.0, 4.0, False, 55.0),  # 8 + 4 + 3 s to stop are 5 s beyond the 10 s
        (60.0, 8.0, 4.0, True, 55.0),
        (20.0, 60.0, 90.0, True, 4.0),  # but a fifth is always for training
    ],
)
def test_training_gets_all_the_time_that_start_and_end_leave(
    seconds, start_s, save_s, evaluates, expected
):
    actual = training_s(seconds, start_s=start_s, save_s=save_s, evaluates=evaluates)
    assert actual == pytest.approx(expected)
