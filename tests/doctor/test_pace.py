"""Steps that grow slower are told; too few of them tell nothing."""

from __future__ import annotations

import pytest

from mlxhog.doctor.checks import Result
from mlxhog.doctor.training import PaceSample, judge_pace


def run(*spans: tuple[float, float]) -> list[PaceSample]:
    """Two samples a second of spans (seconds, seconds of a step)."""
    samples = [PaceSample(3.0, 70)]
    for seconds, step_s in spans:
        for _ in range(int(2 * seconds)):
            before = samples[-1]
            samples.append(PaceSample(before.elapsed_s + 0.5, before.steps + round(0.5 / step_s)))
    return samples


@pytest.mark.parametrize(
    ("second", "result"),
    [
        (0.010, Result.PASS),
        (0.0115, Result.PASS),
        (0.005, Result.PASS),
        (0.0125, Result.WARN),
        (9.0, Result.WARN),
    ],
)
def test_a_second_half_a_fifth_slower_than_the_first_is_a_warning(
    second: float, result: Result
) -> None:
    found = judge_pace(run((3, 0.01), (3, second)))
    assert found.result == result, found
    assert found.found.startswith("10.0 ms, then ")
    assert ("pmset -g therm" in found.consequence) == (result == Result.WARN)


def test_halves_are_halves_of_the_time_not_of_the_steps() -> None:
    found = judge_pace(run((2, 0.005), (2, 0.02)))
    assert found.found == "5.0 ms, then 20.0 ms (+300%)"


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "0 samples are too few"),
        (run((0.5, 0.001)), "2 samples are too few"),
        (run((2, 0.5), (2, 0.5)), "4 steps are too few"),
    ],
)
def test_a_run_with_few_samples_or_steps_tells_nothing(
    samples: list[PaceSample], said: str
) -> None:
    found = judge_pace(samples)
    assert found.result == Result.ABSENT
    assert said in found.found
