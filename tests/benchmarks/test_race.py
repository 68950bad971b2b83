"""Races to a loss: arms that can be, and settings that a search found."""

import math

import backoff
import local_sgd
import peers
import pytest
import schemes
import staleness
from harness import claims, frame, tuning
from language_models import minute
from training import digits, disturbances
from training import race as races

from mlxhog import TrainConfig


def test_every_arm_has_settings_and_is_a_run_that_can_be():
    conditions = disturbances.DISTURBANCES
    options = frame.flags("", **frame.MODES).parse_args(["--full"])
    for condition, scheme, workers in (*schemes.arms(options), *schemes.late_arms(options)):
        arm, slow = schemes.race_arm(scheme, workers), conditions[condition].option(60.0, workers)
        settings = schemes.HIGH.settings(schemes.RULE, arm)
        TrainConfig(**{**races.arm_options(arm, schemes.RULE), **settings}, inject_stragglers=slow)
    with pytest.raises(SystemExit, match=r"no settings were searched for 1\.2 muon, hogwild"):
        races.Target(1.2).settings("muon", "hogwild mlx+torch")
    assert {len(axis) for axis in ({*one} for one in races.AXES.values())} == {3}


@pytest.mark.parametrize("tokens", [400, 1000, 20_000])
def test_an_amount_of_text_lies_between_two_that_were_tried(tokens):
    def loss(tokens):
        return 3.0 - 0.1 * math.log(tokens)

    assert abs(races.enough(tokens, limit=loss(1000), trial=loss) - 1000) <= 2


def test_auto_is_compared_with_the_best_of_the_others_seed_by_seed():
    bits = {"sync": [2.0, 2.0], "speed-weighted sync": [3.0, 3.0], "hogwild": [1.0, 4.0]}
    claim = schemes.auto_claim("equal", {**bits, "auto": [1.01, 2.06]})
    assert claim.value == pytest.approx(math.sqrt(1.01 * 1.03))
    assert claim.interval[0] < 1.01 < 1.03 < claim.interval[1]


def test_peers_are_searched_with_as_many_trials_each_and_have_settings():
    axes = {arm: peers.axes(arm) for arm in (*peers.PEERS, peers.NANOCHAT)}
    assert len({tuple(map(len, own.values())) for own in axes.values()}) == 1
    assert axes.keys() == minute.ARMS.keys()
    for seconds in peers.SECONDS.values():
        for arm, point in tuning.settings(peers.searched(seconds)).items():
            assert all(point[axis] in values for axis, values in axes[arm].items())


def test_a_search_goes_on_beyond_its_first_values_only_where_the_best_is_the_last_of_them():
    axes = {"lr": (1, 2, 4, 8, 16, 32, 64), "d": (1, 2, 3, 4, 5), "kind": ("a", "b")}
    tried = []

    def trial(point):
        tried.append(point)
        best = 32 if point["d"] == 5 else 16
        return abs(math.log2(point["lr"] / best)) + 2 * (5 - point["d"]) + (point["kind"] == "a")

    assert tuning.tuned(axes, trial, {"lr": 3, "d": 3}) == {"lr": 32, "d": 5, "kind": "b"}
    assert [one["lr"] for one in tried[:4]] == [4, 8, 16, 32]
    assert [one["d"] for one in tried[4:8]] == [2, 3, 4, 5]
    assert [one["lr"] for one in tried[10:]] == [8, 16, 32, 64]


def test_every_recorded_setting_of_a_mode_exists():
    for mode in ("--quick", "--full"):
        chosen = frame.flags("", **frame.MODES).parse_args([mode])
        chosen.seeds = (1,)
        assert staleness.jobs_of(chosen, 1200)
        assert all(backoff.rules_of(part, chosen) for part in backoff.PARTS)


@pytest.mark.parametrize(("gap", "expected"), [(0.05, "supported"), (-0.05, "refuted")])
def test_a_claim_of_a_document_can_come_out_either_way(gap, expected):
    local, course = local_sgd, digits.Course
    noise = [0.001, -0.001, 0.0005, 0.0, -0.0005]

    def runs(accuracy):
        return [course(accuracy=[accuracy * (1 + own)] * 3, network_bytes=[1]) for own in noise]

    by = {alpha: {"local_sgd": runs(0.7), "fedprox": runs(0.75), "scaffold": runs(0.75 + gap)}
          for alpha in (1.0, 0.01)}  # fmt: skip
    findings = claims.Findings()
    local.compare_clients(findings, by)
    ends = {one.ended for one in findings.judged(0.0).claims if "of scaffold less" in one.name}
    assert ends == {expected}
