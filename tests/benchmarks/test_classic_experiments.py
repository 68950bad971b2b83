"""Experiments run at their smallest size; times and step sizes are counted as they say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mlxhog.classic.result import ClassicResult, Epoch


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "synthetic_svm",
        "image_svm",
        "paper_tables",
        "density",
        "local_steps",
        "clients",
        "stragglers",
        "late_gradients",
        "minute",
        "outer_steps",
        "sparsified",
    ],
)
def test_an_experiment_writes_its_claims_its_numbers_and_its_figure(load, name, tmp_path):
    script, run = load(name), load("experiment.record").run
    code, drawn = (
        run(script.ABOUT, script.result, script.draw, arguments=[mode, "--out", str(tmp_path)])
        for mode in ("--tiny", "--draw")
    )
    assert code in (0, 3)  # 3: others use the machine; times are no promise here
    assert drawn == 0
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert document["compared"]
    assert document["table"]
    assert all(claim["met"] for claim in document["claims"] if claim["interval"] is None)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def classic(load: Any) -> Any:
    return load("experiment.classic")


def a_run(*objectives: float) -> ClassicResult:
    """A run whose objective starts at 100 and whose epochs take 2 s each."""
    epochs = tuple(
        Epoch(number, 0.1, 2.0, 2.0, 10, {"objective": objective})
        for number, objective in enumerate(objectives, 1)
    )
    return ClassicResult(
        problem="svm",
        scheme="serial",
        write="",
        workers=1,
        status="done",
        start_s=0.0,
        initial={"objective": 100.0},
        epochs=epochs,
        lost_updates=0,
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [(100.0, 0.0), (75.0, 1.0), (50.0, 2.0), (45.0, 3.0), (40.0, 4.0)],
)
def test_seconds_to_an_objective_count_the_last_epoch_in_proportion(classic, target, expected):
    assert classic.seconds_to(a_run(50.0, 40.0, 60.0), target) == expected


def test_an_objective_that_is_never_reached_took_no_time_that_could_be_said(classic):
    assert math.isnan(classic.seconds_to(a_run(50.0, 40.0), 39.0))


def test_seconds_to_an_objective_that_one_seed_misses_leave_no_speedup(load, classic):
    ratio = load("harness.estimates").Ratio
    times = [classic.seconds_to(a_run(50.0, end), 45.0) for end in (40.0, 40.0, 49.0)]
    assert math.isnan(ratio.of([6.0, 6.0, 6.0], times).value)


def test_a_speedup_is_that_of_pairs_with_an_interval(classic):
    slow, fast = [a_run(50.0, 40.0)] * 3, [a_run(50.0)] * 3
    speedup = classic.speedup(slow, fast)
    assert (speedup.value, speedup.n) == (2.0, 3)
