"""The interval between two averages, and the bound for it."""

from __future__ import annotations

import pytest

from mlxhog.errors import DataError
from mlxhog.theory import local_steps
from mlxhog.theory.bounds import Facts

CONVEX = Facts(
    strongly_convex=True, smooth=True, bounded_gradients=True, lossless=True, sgd=True, delta=1.0
)


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


def test_stichs_bound_grows_by_the_square_of_the_interval_alone() -> None:
    def bound(every: int, workers: int = 4) -> dict[str, float]:
        result = local_steps.stich(
            steps=10_000, workers=workers, every=every, smoothness=1.0, curvature=0.1,
            gradient_bound=2.0, noise=1.5, distance=3.0, facts=CONVEX,
        )  # fmt: skip
        assert all(assumption.holds for assumption in result.assumptions)
        return dict(result.values)

    one, ten = bound(1), bound(10)
    assert ten["drift"] == pytest.approx(100 * one["drift"])
    assert (ten["start"], ten["noise"]) == (one["start"], one["noise"])
    assert bound(1, workers=8)["noise"] == pytest.approx(one["noise"] / 2)
    assert one["error"] == pytest.approx(one["start"] + one["noise"] + one["drift"])
    weights = sum((160.0 + t) ** 2 for t in range(10_000))  # a = 16 kappa
    assert one["start"] == pytest.approx(0.1 * 160.0**3 * 9.0 / (2 * weights))


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
