"""How a benchmark ends: what a busy machine excuses, and what it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture(scope="module")
def harness(load: Any) -> Any:
    return load("harness.claims")


def claims(harness: Any, *, time: float, lost: float) -> list[Any]:
    return [
        harness.Claim("time ratio", time, "<=", 1.15),
        harness.Claim("adds lost", lost, "==", 0, timing=False),
    ]


@pytest.mark.parametrize(
    ("time", "lost", "others_load", "verdict", "code"),
    [
        (1.0, 0, 0.0, "met", 0),
        (1.2, 0, 0.0, "missed", 1),
        (float("nan"), 0, 0.0, "missed", 1),
        (1.0, 0, 0.5, "not_measurable", 3),
        (1.2, 0, 0.5, "not_measurable", 3),
        (1.0, 7, 0.5, "missed", 1),
    ],
)
def test_a_busy_machine_excuses_timings_and_never_counts(
    harness: Any,
    capsys: pytest.CaptureFixture[str],
    time: float,
    lost: float,
    others_load: float,
    verdict: str,
    code: int,
) -> None:
    claimed = claims(harness, time=time, lost=lost)
    sample = harness.Sample.of([3.0, 1.0, 2.0])
    results = {"ns": {"add": sample}}
    assert harness.finish("adds", claimed, others_load=others_load, results=results) == code
    printed = capsys.readouterr().out
    line = json.loads(printed.splitlines()[-1])
    assert line["verdict"] == verdict
    assert line["ns"]["add"] == {"median": 2.0, "low": 1.0, "high": 3.0, "repeats": 3}
    assert {"machine", "versions", "commit", "claims"} <= line.keys()
    assert ("busy machine" in printed) == (others_load > 0.1)


def test_our_own_work_is_not_others_load(harness: Any) -> None:
    import time

    watch = harness.LoadWatch()
    began = time.process_time()
    while time.process_time() - began < 0.2:
        pass
    used = time.process_time() - began
    alone, together = watch.stop(used), watch.stop(0.0)
    assert together >= alone


def test_claims_without_a_timing_are_judged_on_a_busy_machine(harness: Any) -> None:
    count = harness.Claim("strings answered", 1.0, ">=", 0.99, timing=False)
    assert harness.finish("parity", [count], others_load=0.5, results={}) == 0
