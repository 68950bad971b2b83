"""Seconds of arms under conditions, and what can be told from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxhog import TrainConfig


@pytest.fixture(scope="module")
def script(load: Any) -> Any:
    return load("unequal_workers")


@pytest.mark.parametrize("scale", ["QUICK", "FULL"])
def test_every_arm_has_settings_and_is_a_run_that_can_be(script: Any, scale: str) -> None:
    of_scale = getattr(script, scale)
    recorded = json.loads(script.SETTINGS.read_text())[of_scale.name]
    for optimizer in of_scale.optimizers:
        for slow in of_scale.conditions().values():
            for arm, options in script.arms_under(slow).items():
                own = recorded[optimizer]["settings"][script.TUNED_AS.get(arm, arm)]
                TrainConfig(**{"optimizer": optimizer, **options, **own})


def test_serial_runs_are_measured_where_their_only_worker_is_slowed_as_others_are(
    script: Any,
) -> None:
    arms = {name: script.arms_under(slow) for name, slow in script.QUICK.conditions().items()}
    assert "serial 1 thread" not in arms["one 4x slower"]
    assert arms["random sleeps"]["serial 1 thread"]["slow"] == "0=random:0.1:6"
    assert all("sync by speed" in of_condition for of_condition in arms.values())


@pytest.mark.parametrize(
    ("hogwild", "rival", "told"),
    [
        ([1.0, 2.0], [2.5, 3.0], "sooner"),
        ([2.6, 3.0], [1.0, 2.5], "later"),
        ([1.0, 2.0], [1.9, 3.0], "cannot be told"),
        ([1.0, 2.0], [2.5, float("inf")], "sooner"),
    ],
)
def test_arms_whose_ranges_overlap_cannot_be_told_apart(
    script: Any, hogwild: list[float], rival: list[float], told: str
) -> None:
    assert script.told(hogwild, rival) == told
