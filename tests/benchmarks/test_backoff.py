"""The experiment on back-off runs, and its verdicts follow from the losses of its seeds."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlxhog import TrainConfig


@pytest.fixture(scope="module")
def backoff(load: Any) -> Any:
    return load("backoff")


def losses(backoff: Any, by_schedule: dict[str, list[float]]) -> Any:
    """Losses of the seeds, and where the curvature is overestimated: 1 higher."""
    return {
        name: {
            factor: [backoff.Trained(value + (factor == backoff.OVER)) for value in values]
            for factor in (1.0, backoff.OVER)
        }
        for name, values in by_schedule.items()
    }


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([1.0, 1.11, 0.9], "holds"),
        ([3.0, 3.11, 2.9], "does not hold"),
        ([2.0, 1.0, 3.0], "cannot be told here"),
    ],
)
def test_claims_on_schedules_follow_from_differences_of_seeds(
    backoff: Any, ours: list[float], verdict: str
) -> None:
    others = dict.fromkeys(backoff.SCHEDULES, [2.0, 2.1, 1.9])
    by_schedule = losses(backoff, {**others, "back-off": ours})
    slopes = {(s, factor): ours for s in ("back-off", "1/k") for factor in (1.0, 4.0)}
    ends = backoff.compared(
        dict.fromkeys(backoff.TITLES, by_schedule), dict.fromkeys(backoff.CONVEX, slopes)
    )
    assert [one.verdict for one in ends if "1/k rate" not in one.claim][0::3] == [verdict] * 2
    assert backoff.beside(by_schedule, "1/k", "tuned").mean == pytest.approx(sum(ours) / 3 - 2.0)
    assert backoff.MEASURES["worst"](by_schedule, "1/k") == pytest.approx([3.0, 3.1, 2.9])


@pytest.mark.parametrize(
    ("exponents", "verdict"),
    [
        ([-1.0, -1.02, -0.99], "holds"),
        ([-0.5, -0.52, -0.49], "does not hold"),
        ([-0.9, -1.1, -0.7], "cannot be told here"),
    ],
)
def test_an_excess_falls_as_1_over_k_where_the_interval_of_its_exponent_says_so(
    backoff: Any, exponents: list[float], verdict: str
) -> None:
    by_schedule = losses(backoff, dict.fromkeys(backoff.SCHEDULES, [2.0, 2.1, 1.9]))
    slopes = {(s, factor): exponents for s in ("back-off", "1/k") for factor in (1.0, 4.0)}
    rate, *_, slower, _ = backoff.compared(
        dict.fromkeys(backoff.TITLES, by_schedule), dict.fromkeys(backoff.CONVEX, slopes)
    )
    assert (rate.verdict, slower.verdict) == (verdict, verdict)


def test_stages_of_8_epochs_end_after_8_30_and_89(backoff: Any) -> None:
    rule = backoff.Rule("back-off", 0.06, share=1 / 32)
    assert backoff.stage_ends(rule, 256) == [30, 89, 246]


def test_an_excess_of_one_over_k_has_exponent_minus_1(backoff: Any) -> None:
    curve = [-math.log10(k) for k in range(1, 65)]
    assert backoff.slope(curve, [8, 30, 60]) == pytest.approx(-1.0)


@pytest.mark.slow
def test_the_experiment_writes_its_claims_its_numbers_and_its_figure(
    backoff: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "pool", lambda: ThreadPoolExecutor(1))  # torch is imported here
    run = load("experiment.record").run
    for mode in ("--tiny", "--draw"):
        arguments = [mode, "--out", str(tmp_path)]
        assert run(backoff.ABOUT, backoff.result, backoff.draw, arguments=arguments) == 0
    document = json.loads((tmp_path / "backoff.json").read_text())
    assert len(document["compared"]) == 5
    assert len(document["table"]) == 16
    assert (tmp_path / "backoff.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rivals", "verdict"),
    [
        ([2.1, 2.11, 2.09, 2.1], "holds"),
        ([1.9, 1.91, 1.89, 1.9], "does not hold"),
        ([2.0, 1.9, 2.1, 2.02], "cannot be told here"),
    ],
)
def test_lock_free_back_off_is_compared_with_each_schedule_seed_by_seed(
    load: Any, rivals: list[float], verdict: str
) -> None:
    cell = load("lock_free_schedules")
    bits = {("muon", name): rivals for name in cell.RIVALS}
    bits["muon", cell.BACKOFF] = [2.0, 2.01, 1.99, 2.0]
    chosen = {"muon": {cell.BACKOFF: {"share": 0.5}}}
    assert [one.verdict for one in cell._compared(bits, chosen)] == [verdict, verdict]


def test_back_off_that_never_falls_is_not_compared(load: Any) -> None:
    cell = load("lock_free_schedules")
    bits = {("muon", name): [2.0, 2.01] for name in (cell.BACKOFF, *cell.RIVALS)}
    bits |= {("adamw", schedule): own for (_, schedule), own in bits.items()}
    shares = {"muon": {cell.BACKOFF: {"share": 0.5}}, "adamw": {cell.BACKOFF: {"share": 1.0}}}
    for one in cell._compared(bits, shares):
        assert {claim.name.partition(":")[0] for claim in one.rests_on} == {"muon"}


def test_every_schedule_of_lock_free_workers_begins_at_its_step_size(load: Any) -> None:
    cell, schedules = load("lock_free_schedules"), load("training.schedules")
    for name in (cell.BACKOFF, *cell.RIVALS):
        options = cell.rule_options(schedules.Rule(name, 1e-3, 0.5), 100)
        config = TrainConfig(strategy="hogwild", workers="torch:cpu*2", **options)
        assert config.schedule.at(1e-3, 0.0, 0) == 1e-3, name


def test_lock_free_schedules_are_refused_without_settings_of_every_one(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = load("lock_free_schedules")
    monkeypatch.setattr(cell, "recorded", lambda name: {})
    with pytest.raises(SystemExit, match="muon, back-off; .*--tune"):
        cell.settings(load("experiment.record").Scale("full"))
