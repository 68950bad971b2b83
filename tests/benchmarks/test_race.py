"""Races to a loss: arms that can be, settings that a search found on the same axes, runs kept."""

import json
import math

import pytest

from mlxhog import TrainConfig


@pytest.fixture(scope="module")
def races(load):
    return load("training.race")


def test_every_arm_is_tuned_on_the_same_axes_by_as_many_trials(races, monkeypatch, tmp_path):
    tried, settings = {}, tmp_path / "settings.json"
    best = {"lr": 4.2e-3, "beta1": 0.75, "batch_size": 4}

    def run_arm(arm, optimizer, seed, options):
        loss = sum(abs(math.log(options[axis] / best[axis])) for axis in best)
        tried.setdefault(arm, []).append({axis: options[axis] for axis in best})
        bits = 1.5 + loss + 50 / options["tokens"]
        point = type("Point", (), {"params": bits})
        return type("Recorded", (), {"points": [point]})

    monkeypatch.setattr(races, "SETTINGS", settings)
    monkeypatch.setattr(races, "run_arm", run_arm)
    course = object.__new__(races.Course)
    course.target = races.Target(1.6, {"muon": 1000})
    course._held_out = type("HeldOut", (), {"bits_per_byte": lambda self, params: params})()
    course.tune("muon", races.ARMS)
    own = {arm for arm in races.ARMS if arm not in races.TUNED_AS}
    assert set(tried) == own
    first = sum(map(len, races.AXES["muon"].values())) - 2  # each further axis begins with a known
    assert {len({tuple(one.values()) for one in points}) for points in tried.values()} == {first}
    known = json.loads(settings.read_text())["1.6"]["muon"]
    assert {tuple(one[axis] for axis in best) for one in known["settings"].values()} == {
        tuple(best.values())
    }
    before = sum(map(len, tried.values()))
    course.tune("muon", races.ARMS)
    assert sum(map(len, tried.values())) == before  # nothing is tried twice


def test_a_best_step_size_at_the_end_of_its_axis_is_refused(races):
    with pytest.raises(SystemExit, match=r"lr 3 is the last of its axis"):
        races.tuned({"lr": (1, 2, 3), "beta1": (0.9,)}, lambda point: -point["lr"])


def test_every_arm_has_settings_and_is_a_run_that_can_be(load, races):
    unequal, speedup, schemes = load("unequal_workers"), load("speedup"), load("schemes")
    arms = [
        (condition.target, optimizer, arm, slow)
        for scale in (unequal.QUICK, unequal.FULL)
        for optimizer in scale.optimizers
        for condition in scale.of(optimizer).values()
        for arm, slow in unequal.arms_under(condition.slow).items()
    ]
    arms += [
        (contest.target, optimizer, arm, None)
        for contest in (speedup.BYTES_MODEL, speedup.DEFAULT_MODEL)
        for optimizer, arm in contest.raced
    ]
    full = load("experiment.record").Scale("full")
    arms += [
        (unequal.HIGH, schemes.RULE, schemes.race_arm(name, n), schemes.slow(condition, n))
        for condition, name, n in schemes.arms(full)
    ]
    for target, optimizer, arm, slow in arms:
        settings = target.settings(optimizer, arm)
        TrainConfig(**{**races.arm_options(arm, optimizer), **settings}, slow=slow)
    with pytest.raises(SystemExit, match=r"no settings were searched for muon, hogwild, 1\.2 bits"):
        races.Target(1.2, {}).settings("muon", "hogwild mlx+torch")


@pytest.mark.parametrize("tokens", [400, 1000, 20_000])
def test_an_amount_of_text_lies_between_two_that_were_tried(races, tokens):
    def loss(tokens):
        return 3.0 - 0.1 * math.log(tokens)

    assert abs(races.enough(tokens, limit=loss(1000), trial=loss) - 1000) <= 2


def test_auto_is_compared_with_the_best_of_the_others_seed_by_seed(load):
    bits = {"sync": [2.0, 2.0], "sync by speed": [3.0, 3.0], "hogwild": [1.0, 4.0]}
    claim = load("training.disturbed").claim("equal", {**bits, "auto": [1.01, 2.06]})
    assert claim.value == pytest.approx(math.sqrt(1.01 * 1.03))
    assert claim.interval[0] < 1.01 < 1.03 < claim.interval[1]


@pytest.mark.parametrize(("timed", "trained"), [(True, 2), (False, 1)])
def test_a_training_of_this_commit_is_run_again_only_where_others_spoilt_its_time(
    load, tmp_path, monkeypatch, timed, trained
):
    module, record = load("experiment.runs"), load("experiment.record")
    about, scale = record.Experiment("one", "", "", ""), record.Scale("quick", tmp_path)
    loads, count = iter([0.5, 0.0, 0.0, 0.0]), []
    monkeypatch.setattr(module, "commit", lambda: "a")
    monkeypatch.setattr(module.LoadWatch, "stop", lambda _: next(loads))

    def train():
        count.append(1)
        return {}

    for _ in range(3):
        module.Runs(about, scale, timed=timed).of({"seed": 1}, train)
    assert len(count) == trained
    with (tmp_path / "one.runs.jsonl").open("a") as file:
        file.write('{"commit": "a", "ru')  # killed while it wrote
    module.Runs(about, scale, timed=timed).of({"seed": 1}, train)
    assert len(count) == trained
    monkeypatch.setattr(module, "commit", lambda: "b")
    module.Runs(about, scale, timed=timed).of({"seed": 1}, train)
    assert len(count) == trained + 1
