"""The interval between two averages."""

from __future__ import annotations

import pytest

from mlxhog.errors import DataError
from mlxhog.theory import local_steps


@pytest.mark.parametrize(
    ("step_s", "sync_s", "growth", "best"),
    [
        (0.1, 0.05, 0.001, 22),  # document 003's exercise, whose solution is 7 and its code 22
        (0.1, 0.5, 0.1, 7),
        (0.001, 0.1, 0.01, 99),
        (0.1, 0.1, 0.1, 3),
        (1.0, 0.001, 0.5, 1),
    ],
)
def test_the_optimal_interval_is_that_of_brute_force(
    step_s: float, sync_s: float, growth: float, best: int
) -> None:
    times = {"step_s": step_s, "sync_s": sync_s, "growth": growth}
    brute = min(range(1, 1001), key=lambda h: local_steps.time_to_loss(h, **times))
    assert local_steps.interval_by_cost(**times) == brute
    assert brute == best


def test_averages_take_a_tenth_of_the_time_at_nine_times_their_cost() -> None:
    assert local_steps.interval_by_overhead(step_s=0.1, sync_s=0.1) == 9
    assert local_steps.interval_by_overhead(step_s=1.0, sync_s=0.001) == 1
    assert local_steps.interval_by_overhead(step_s=1.0, sync_s=0.0) == 1
    h = local_steps.interval_by_overhead(step_s=0.03, sync_s=0.2, share=0.25)
    shares = [0.2 / (0.2 + every * 0.03) for every in (h - 1, h)]
    assert shares[0] > 0.25 >= shares[1]


def test_growth_is_what_gives_the_steps_back() -> None:
    growth = local_steps.growth_of(steps_apart=115.0, steps_together=100.0, every=16)
    assert growth == pytest.approx(0.01)


@pytest.mark.parametrize(
    "call",
    [
        lambda: local_steps.interval_by_overhead(step_s=0.0, sync_s=1.0),
        lambda: local_steps.interval_by_overhead(step_s=1.0, sync_s=1.0, share=1.0),
        lambda: local_steps.interval_by_cost(step_s=1.0, sync_s=1.0, growth=0.0),
        lambda: local_steps.growth_of(steps_apart=2.0, steps_together=1.0, every=1),
    ],
)
def test_numbers_that_cannot_be_are_refused(call: object) -> None:
    with pytest.raises(DataError, match="expected|take"):
        call()  # type: ignore[operator]
