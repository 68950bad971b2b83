"""Trainings to a loss: their settings, what slows them, and what can be told from their times."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig
from mlxhog.data.prepare import prepare


@pytest.fixture(scope="module")
def unequal(load):
    return load("unequal_workers")


@pytest.fixture(scope="module")
def races(load):
    return load("training.time_to_loss")


def test_every_arm_has_settings_and_is_a_run_that_can_be(load, unequal, races):
    speedup = load("speedup")
    slowed = [
        (condition.target, optimizer, arm, slow)
        for scale in (unequal.QUICK, unequal.FULL)
        for optimizer in scale.optimizers
        for condition in scale.of(optimizer).values()
        for arm, slow in unequal.arms_under(condition.slow).items()
    ]
    raced = [
        (contest.target, optimizer, arm, None)
        for contest in (speedup.BYTES_MODEL, speedup.DEFAULT_MODEL)
        for optimizer, arm in contest.raced
    ]
    for target, optimizer, arm, slow in [*slowed, *raced]:
        settings = target.settings(optimizer, arm)
        TrainConfig(**races.arm_options(arm, optimizer), **settings, slow=slow)


def test_auto_is_compared_with_the_best_of_the_others_seed_by_seed(load):
    disturbed = load("training.disturbed")
    for disturbance in disturbed.DISTURBANCES.values():
        slow = disturbance.slow and disturbance.slow(30.0)
        for arm in disturbed.ARMS.values():
            TrainConfig(**disturbed.OPTIONS, **arm, slow=slow, time=30.0)
    bits = {"sync": [2.0, 2.0], "sync by speed": [3.0, 3.0], "hogwild": [1.0, 4.0]}
    claim = disturbed.claim("equal", {**bits, "auto": [1.01, 2.06]})
    assert claim.value == pytest.approx(math.sqrt(1.01 * 1.03))
    assert claim.interval[0] < 1.01 < 1.03 < claim.interval[1]


def test_settings_that_nobody_searched_are_asked_for(races):
    with pytest.raises(SystemExit, match=r"no settings were searched for muon, hogwild, 1\.2 bits"):
        races.Target(1.2, {}).settings("muon", "hogwild mlx+torch")


def test_a_search_widens_until_the_best_step_size_has_a_worse_one_on_either_side(races):
    tried = []

    def trial(point):
        tried.append(point["lr"])
        return float(abs(point["lr"] - 4) + abs(point.get("beta1", 0.7) - 0.7))

    rates = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert races.best_point(races.Grid(1.0, 2.0), rates, trial) == {"lr": 4.0}
    assert set(tried) == {1.0, 2.0, 3.0, 4.0, 5.0}
    grid = races.Grid(3.0, 5.0, 0.75, (0.7, 0.8))
    assert races.best_point(grid, rates, trial) == {"lr": 4.0, "beta1": 0.7}
    with pytest.raises(SystemExit, match=r"lr 2\.0 is the last of RATES"):
        races.best_point(races.Grid(1.0, 2.0), rates[:2], trial)


@pytest.mark.parametrize("tokens", [400, 1000, 20_000])
def test_an_amount_of_text_lies_between_two_that_were_tried(races, tokens):
    def loss(tokens):
        return 3.0 - 0.1 * math.log(tokens)

    found = races.enough(tokens, limit=loss(1000), trial=loss)
    assert abs(found - 1000) <= 2


def test_a_loss_that_no_text_reaches_ends_the_search_for_one(races):
    tried = []

    def loss(tokens):
        tried.append(tokens)
        return 3.0

    assert races.enough(1000, limit=2.0, trial=loss) == max(tried) <= 3000


def test_a_race_of_hours_asks_for_missing_settings_first(load, races):
    speedup = load("speedup")
    raced = speedup.BYTES_MODEL.raced
    speedup.BYTES_MODEL.target.check(raced)
    with pytest.raises(SystemExit, match=r"no settings .* 1\.2 bits per byte; .*--tune"):
        races.Target(1.2, {}).check(raced)


def test_serial_runs_are_measured_where_their_only_worker_is_slowed_as_others_are(unequal):
    arms = {
        name: unequal.arms_under(condition.slow)
        for name, condition in unequal.QUICK.conditions.items()
    }
    assert "serial 1 thread" not in arms["one 4x slower"]
    assert "serial 1 thread" not in arms["one joins late"]
    assert "serial 1 thread" in arms["uneven lengths"]
    assert arms["random sleeps"]["serial 1 thread"] == "0=random:0.1:6"
    assert all("sync by speed" in of_condition for of_condition in arms.values())


def test_sentences_are_rows_of_their_own_lengths(unequal, tmp_path, monkeypatch):
    text = "It is done. Is it? " + "A long one, " * 60 + "ends. "
    address = SimpleNamespace(text=text)
    monkeypatch.setattr(unequal, "read_sotu", lambda: [address] * 8)
    path = tmp_path / "sentences.jsonl"
    unequal.write_sentences(path)
    train, _ = prepare(str(path), cache_dir=tmp_path / "cache").open(unequal.SENTENCE_LENGTH)
    batch = train.batch(np.arange(2), unequal.SENTENCE_LENGTH)
    assert batch.x.shape == (2, 32)  # as wide as its longest row
    rows = train.rows(unequal.SENTENCE_LENGTH)
    assert set(rows.length.tolist()) == {12, 7, unequal.SENTENCE_LENGTH, 726 - 512}
    assert not rows.context.any()
