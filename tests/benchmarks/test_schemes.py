"""The experiment on schemes: arms that can run, verdicts from pairs, runs that continue."""

import json

import pytest

from mlxhog import TrainConfig


@pytest.fixture(scope="module")
def schemes(load):
    return load("schemes")


def trained(schemes, scale, seconds):
    """Trainings of every arm of a mode; those without seconds take 10 s, by seed and arm more."""
    free = [10.0, 10.1, 9.9, 10.05, 9.95]
    return {
        arm: [
            {
                "seconds": s,
                "trained_s": s,
                "tokens": 1000 * s,
                "tokens_per_s": 1000.0,
                "staleness": 1.0,
            }
            for s in seconds.get(arm[1], free if arm[1] == schemes.FREE else free[::-1])
        ]
        for arm in schemes.arms(scale)
    }


def compared(schemes, load, seconds):
    record = load("experiment.record")
    scale = record.Scale("full", seeds=(1, 2, 3, 4, 5))
    outcome = schemes.outcome(scale, trained(schemes, scale, seconds), {}, 0.0)
    decided = record.together_corrected(outcome)
    return {one.claim.split()[0]: one.verdict for one in decided.compared}


def test_every_arm_of_a_full_run_is_a_training_that_can_be_and_has_a_search(schemes, load):
    races, scale = load("training.time_to_loss"), load("experiment.record").Scale("full")
    for condition, scheme, workers in schemes.arms(scale):
        name = schemes.race_arm(scheme, workers)
        options = races.arm_options(name, schemes.RULE)
        TrainConfig(**options, slow=schemes.slow(condition, workers), lr=3e-3)
        assert races.TUNED_AS.get(name, name) in races.GRIDS[schemes.RULE]


def test_verdicts_of_schemes_follow_from_the_pairs(schemes, load):
    level = compared(schemes, load, {})
    assert level["Round-Robin"] == "does not hold"
    assert level["Gradient"] == level["Hogwild!"] == "cannot be told here"
    rivals = (*schemes.ROUNDS, *schemes.ONLY_TWO, *schemes.ALONE)
    slow = {name: [20.0, 20.3, 19.9, 20.2, 20.1] for name in rivals}
    slower = compared(schemes, load, slow)
    assert slower["Gradient"] == slower["Natural"] == "holds"
    turns = compared(schemes, load, {"round-robin": [200.0, 205.0, 201.0, 202.0, 204.0]})
    assert turns["Round-Robin"] == "holds"
    fast = compared(schemes, load, {name: [5.0, 5.1, 4.9, 5.0, 5.1] for name in rivals})
    assert fast["Gradient"] == fast["Natural"] == "does not hold"
    behind = {name: slow[name] for name in rivals if name not in schemes.ROUNDS}
    one_ahead = compared(schemes, load, {**behind, "sync": [9.0, 9.1, 8.9, 9.0, 9.05]})
    assert one_ahead["Hogwild!"] == "does not hold"
    assert one_ahead["Gradient"] == "does not hold"


def test_a_run_that_did_not_reach_the_loss_decides_nothing(schemes, load):
    seconds = {"sync": [20.0, 20.0, None, 20.0, 20.0]}
    scale = load("experiment.record").Scale("full", seeds=(1, 2, 3, 4, 5))
    runs = trained(schemes, scale, {})
    runs[schemes.EQUAL, "sync", 2] = [
        {"seconds": s, "trained_s": 60.0, "tokens": s, "tokens_per_s": 1.0, "staleness": 0.0}
        for s in seconds["sync"]
    ]
    outcome = schemes.outcome(scale, runs, {}, 0.0)
    averaging = next(one for one in outcome.compared if one.claim.startswith("Gradient"))
    unknown = next(one for one in averaging.rests_on if ", 2 workers: sync / hogwild" in one.name)
    assert unknown.ended == "cannot_be_told"
    row = next(row for row in outcome.table if (row["scheme"], row["workers"]) == ("sync", 2))
    assert (row["reached"], row["seconds / hogwild"]) == ("4 of 5 within 60.0 s", "")


def test_runs_averaged_once_that_never_get_there_are_no_improvement(schemes, load):
    record = load("experiment.record")
    scale = record.Scale("full", seeds=(1, 2, 3, 4, 5))
    runs = trained(schemes, scale, {})
    for one in runs[schemes.EQUAL, schemes.ONCE, 2]:
        one |= {"trained_s": 3.0 * one["seconds"], "seconds": None, "tokens": None}
    outcome = record.together_corrected(schemes.outcome(scale, runs, {}, 0.0))
    (averaged,) = [one for one in outcome.compared if one.claim.startswith("MapReduce")]
    assert averaged.verdict == "holds"
    rows = {(row["scheme"], row["reached"]) for row in outcome.table}
    assert {(schemes.ONCE, "0 of 5 within 30.0 s"), (schemes.FREE, "5 of 5")} <= rows
    assert "0 of 5 within 30.0 s reached the loss" in averaged.measured
    assert averaged.rests_on == ()
    schemes.draw(outcome).canvas.draw()


def test_recorded_step_sizes_have_a_worse_one_on_either_side(load):
    races = load("training.time_to_loss")
    document, checked = json.loads(races.SETTINGS.read_text()), 0
    for of_target in document.values():
        for optimizer, searched in of_target.items():
            for arm, chosen in searched["settings"].items():
                first = races.GRIDS[optimizer][arm].beta1
                losses = {
                    trial["lr"]: trial["bits_per_byte"]
                    for trial in reversed(searched["trials"])
                    if trial["arm"] == arm and trial.get("beta1") == first
                }
                below = [losses[lr] for lr in losses if lr < chosen["lr"]]
                above = [losses[lr] for lr in losses if lr > chosen["lr"]]
                assert min(*below, *above) >= losses[chosen["lr"]], (optimizer, arm)
                checked += 1
    assert checked >= 12


def test_a_training_of_this_commit_is_not_run_again(load, tmp_path, monkeypatch):
    module, record = load("experiment.runs"), load("experiment.record")
    about, scale = record.Experiment("one", "", "", ""), record.Scale("quick", tmp_path)
    key, count = {"arm": ("equal", 2), "seed": 1}, []

    def train():
        count.append(1)
        return {"seconds": float(len(count))}

    def seconds(commit):
        monkeypatch.setattr(module, "commit", lambda: commit)
        return float(module.Runs(about, scale).of(key, train)["seconds"])

    assert [seconds(commit) for commit in ("a", "a", "b", "b")] == [1.0, 1.0, 2.0, 2.0]
    assert [seconds(commit) for commit in ("a+", "a+", None)] == [3.0, 4.0, 5.0]
    with (tmp_path / "one.runs.jsonl").open("a") as file:
        file.write('{"commit": "a", "ru')  # killed while it wrote
    assert seconds("a") == 1.0
    monkeypatch.setattr(module, "machine", lambda: {"letter": "M", "cpu": "x", "cores": 2})
    assert seconds("a") == 6.0  # times of two machines make no pair
    runs = module.Runs(about, scale)
    runs.used = [{"took_s": 3.0, "others_load": 0.1}, {"took_s": 1.0, "others_load": 0.5}]
    assert runs.others_load == pytest.approx(0.2)


@pytest.mark.parametrize(("timed", "trained"), [(True, 2), (False, 1)])
def test_a_training_that_others_disturbed_is_run_again_where_its_time_counts(
    load, tmp_path, monkeypatch, timed, trained
):
    module, record = load("experiment.runs"), load("experiment.record")
    about, scale = record.Experiment("one", "", "", ""), record.Scale("quick", tmp_path)
    loads, count = iter([0.5, 0.0]), []
    monkeypatch.setattr(module, "commit", lambda: "a")
    monkeypatch.setattr(module.LoadWatch, "stop", lambda _: next(loads))

    def train():
        count.append(1)
        return {}

    for _ in range(3):
        module.Runs(about, scale, timed=timed).of({"seed": 1}, train)
    assert len(count) == trained
