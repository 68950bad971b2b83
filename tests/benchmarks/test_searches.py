"""Searched step sizes: a worse one on either side, or an error; also of those that are recorded."""

import json
import math
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "benchmarks" / "experiments"
RECORDED = {
    "paper_tables": "objective",
    "image_svm": "test_loss",
    "sparsified": "searched",
}
"""The key of the costs in the settings of each experiment."""


@pytest.fixture(scope="module")
def searches(load):
    return load("experiment.searches")


@pytest.mark.parametrize("best", [0.01, 0.3, 40.0])
def test_a_search_ends_with_a_worse_step_size_on_either_side(searches, best):
    found = searches.search((0.5, 1.0), lambda rate: abs(math.log(rate / best)), most=20)
    assert found.missing_side == 0
    assert abs(math.log(found.best / best)) <= math.log(2.0)
    assert min(found.costs) < found.best < max(found.costs)


def test_a_training_that_diverges_is_worse_than_any(searches):
    found = searches.search((0.5, 1.0), lambda rate: 1 / rate if rate < 3 else math.nan)
    assert found.best == 2.0
    assert found.to_json()["4"] is None


def test_a_search_whose_best_stays_at_an_edge_is_refused(searches):
    with pytest.raises(SystemExit, match="no step size of 1 to 64 has a worse one on either side"):
        searches.search((1.0, 2.0), lambda rate: 1 / rate, most=5)


@pytest.mark.parametrize(("costs", "side"), [
    ({1.0: 3, 2.0: 2, 4.0: 1}, 1),
    ({1.0: 1, 2.0: 2, 4.0: 3}, -1),
    ({1.0: 1, 2.0: 1, 4.0: 3}, -1),
    ({1.0: 2, 2.0: 1, 4.0: None}, 0),
])  # fmt: skip
def test_a_step_size_at_an_edge_is_noticed(searches, costs, side):
    assert searches.Search(costs).missing_side == side


@pytest.mark.parametrize("name", RECORDED)
def test_no_recorded_step_size_is_at_an_edge(searches, name):
    settings = json.loads((EXPERIMENTS / f"{name}_settings.json").read_text())
    arms = dict(_arms(settings["lr"], settings[RECORDED[name]], ()))
    assert arms
    for arm, (rate, costs) in arms.items():
        tried = searches.Search({float(lr): cost for lr, cost in costs.items()})
        assert tried.best == pytest.approx(rate, rel=1e-4), arm
        assert tried.missing_side == 0, f"{arm}: {rate:g} is at an edge of {sorted(tried.costs)}"


def test_no_step_size_of_staleness_is_at_an_edge():
    settings = json.loads((EXPERIMENTS / "staleness_settings.json").read_text())
    for model, rates in settings["lr"].items():
        for name, rate in rates.items():
            rule, _, workers = name.rpartition(", ")
            tried = {
                trial["lr"]: trial["bits_per_byte"]
                for trial in settings["trials"]
                if (trial["model"], trial["rule"], trial["workers"]) == (model, rule, int(workers))
            }
            least = tried[rate]
            sides = [lr > rate for lr, bits in tried.items() if bits > least]
            assert min(tried.values()) == least, (model, name)
            assert {False, True} == set(sides), (model, name)


def test_no_setting_of_lock_free_schedules_is_at_an_edge():
    settings = json.loads((EXPERIMENTS / "lock_free_schedules_settings.json").read_text())
    for optimizer, by_schedule in settings.items():
        for schedule, trials in by_schedule.items():
            share, best, _ = min(trials, key=lambda trial: trial[2])
            rates = [lr for tried, lr, _ in trials if tried == share]
            assert min(rates) < best < max(rates), (optimizer, schedule)


def _arms(rates, costs, path):
    for name, rate in rates.items():
        if isinstance(rate, dict):
            yield from _arms(rate, costs[name], (*path, name))
        else:
            yield (*path, name), (rate, costs[name])
