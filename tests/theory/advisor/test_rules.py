"""Each rule of the advisor turns where its number does; the trial decides by paired losses."""

import math
import shlex
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.base.load import Load, LoadWatch
from mlxhog.config.choices import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.config.strategies import Hogwild, RoundRobin, Serial, Sync
from mlxhog.config.strategy import strategy_name
from mlxhog.errors import Diverged
from mlxhog.theory.advisor import measuring, rules
from mlxhog.theory.advisor.measuring import TIE_BITS, decide
from mlxhog.theory.advisor.profile import Profile
from mlxhog.theory.advisor.rules import RULES, arms, recommend
from mlxhog.theory.short_runs import PLAIN
from mlxhog.theory.simulator.links import Link
from mlxhog.theory.simulator.times import times_of
from mlxhog.theory.simulator.workers import Worker

QUIET, BUSY = Load(0.0, 2, 0.4), Load(1.8, 2, 9.3)
EVEN, TAIL = times_of("constant", 0.1), times_of("exponential", 0.05, 0.05)


@pytest.fixture(autouse=True)
def _fewer_updates(monkeypatch):
    """Rules decide by the profile; predictions, of which all but one are only shown, are rough."""
    monkeypatch.setattr(rules, "SIMULATED", 1000)


def profile(times, sync_s=0.002, **known):
    workers = [Worker(name="w", compute=time) for time in times]
    alone = known.pop("alone", Worker(name="w", compute=times[-1]))
    return Profile(workers=workers, alone=alone, sync_s=sync_s, **known)


def advised(one, *strategies):
    advice = recommend(one, strategies or rules.CANDIDATES)
    assert advice.second is None or advice.second.arm.family != advice.first.arm.family
    return advice


@pytest.mark.parametrize(
    ("one", "name", "rule"),
    [
        (profile([EVEN]), "serial", "the machine is full"),
        (
            profile([times_of("constant", 0.4)] * 4, alone=Worker(name="w", compute=EVEN)),
            "serial",
            "the machine is full",
        ),
        (profile([TAIL] * 4, reproducible=True), "round_robin", "runs must repeat"),
        (profile([EVEN] * 4, reproducible=True), "sync", "runs must repeat"),
        (profile([EVEN] * 4), "sync", "rounds cost next to nothing"),
        (profile([TAIL] * 4, p_conf=0.1, density=0.01), "hogwild", "updates seldom meet"),
        (
            profile([times_of("constant", 1.0), *[EVEN] * 3]),
            "hogwild",
            "one worker is slow for good",
        ),
        (
            profile([times_of("constant", 1.0), *[EVEN] * 3], batch=16),
            "sync by speed",
            "one worker is slow for good",
        ),
        (profile([TAIL] * 4), "hogwild", "stragglers dominate"),
        (profile([EVEN] * 4, 0.2), "local_sgd", "merging dominates within a machine"),
        (profile([EVEN] * 4, 0.2, adaptive=True), "diloco", "merging dominates within a machine"),
        (profile([EVEN] * 4, 2.0), "diloco", "merging is very expensive"),
        (
            profile([EVEN] * 4, 0.2, heterogeneity=1.0),
            "scaffold",
            "merging dominates, and data differ",
        ),
        (profile([EVEN] * 4, 0.2, link=Link.parse("0.1")), "diloco", "merging is very expensive"),
    ],
)
def test_every_row_of_the_table_decides_where_its_number_says(one, name, rule):
    advice = advised(one)
    assert (advice.first.arm.name, advice.rule) == (name, rule)
    assert advice.because
    assert advice.otherwise


def test_rounds_of_several_machines_are_advised_so_that_the_link_is_seldom_busy():
    link = Link.parse("100Mbit:50ms")
    one = profile([EVEN] * 4, 2.0, link=link, machines=3, n_params=1_000_000)
    every_s = one.round_every_s
    assert every_s is not None
    assert link.round_s(4e6, 3) <= 0.1 * every_s
    assert one.cluster is not None
    assert f"--round-every {every_s:g}s" in one.cluster
    assert "predicted for 3 machines" in one.cluster
    assert one.to_json()["round_every_s"] == every_s
    assert profile([EVEN] * 4).cluster is None
    assert "no worker waits" in recommend(one).because


def test_only_the_strategies_to_choose_among_are_advised():
    few = (Serial(), Sync(), Hogwild())
    for one in (profile([EVEN] * 4, 2.0), profile([TAIL] * 4), profile([EVEN] * 4, 0.2)):
        assert {each.arm.strategy for each in advised(one, *few).expected} == set(few)
    every = {arm.strategy for arm in arms(profile([EVEN] * 4)).values()}
    assert {*few, RoundRobin()} <= every


def test_every_arm_of_the_tree_is_a_configuration_that_train_takes():
    here = profile([EVEN] * 2, 0.2, backend="mlx:cpu")
    before = TrainConfig(workers="mlx:cpu*2", strategy="ssp", slack=1)
    for arm in arms(here).values():
        words = shlex.split(arm.flags)
        flags = dict(zip(words[::2], words[1::2], strict=True))
        assert STRATEGIES.read(flags.pop("--strategy")) == arm.strategy
        assert flags == ({"--workers": "mlx:cpu"} if arm.strategy == Serial() else {})
        config = replace(before, **{**PLAIN, "strategy": arm.strategy})
        assert config.strategy == arm.strategy


def test_rounds_cost_what_the_formula_says():
    one = profile([TAIL] * 4, 0.02)
    slowest = 0.05 + 0.05 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert one.slowest_s == pytest.approx(slowest, rel=0.02)
    assert one.gain == pytest.approx((slowest + 0.02) / 0.1 - 1, rel=0.05)
    assert profile([EVEN] * 4, 0.1).period() == 9  # 9 T_s / T_c at a tenth
    assert one.slow_worker is None


def test_every_rule_has_a_name_of_its_own():
    assert len({rule.topic for rule in RULES}) == len(RULES)


def test_a_gradient_may_be_as_late_as_its_variance_over_the_square_of_the_mean():
    assert profile([EVEN]).most_late is None
    assert profile([EVEN], noise_scale=42.0, batch=4).most_late == 11
    assert profile([EVEN], noise_scale=0.5, batch=4).most_late == 1


def test_a_trial_is_decided_by_paired_losses_and_a_tie_goes_to_who_repeats():
    known = arms(profile([EVEN] * 2))
    pair = (known[Hogwild()], known[Sync()])
    noise = np.random.default_rng(0).normal(3.0, 0.5, 40)  # batches differ by far more than arms
    assert decide(pair, (noise, noise - 0.1))[:2] == ("sync", False)
    assert decide(pair, (noise, noise + 0.1))[:2] == ("hogwild", False)
    assert decide(pair, (noise, noise + TIE_BITS / 2))[:2] == ("sync", True)
    assert decide(pair, (noise, noise + np.where(np.arange(40) % 2, 0.5, -0.44)))[1]
    assert decide(pair, (noise * np.nan, noise))[:2] == ("sync", False)
    assert decide(pair, (noise, noise * np.nan))[:2] == ("hogwild", False)


@pytest.mark.parametrize("wild", [("hogwild",), ("sync",), ("hogwild", "sync")])
def test_an_arm_that_diverges_loses_the_trial_and_is_trained_no_further(monkeypatch, wild):
    trained = []

    def train(settings, *_, **__):
        trained.append(strategy_name(settings))
        lost = strategy_name(settings) in wild
        status, checkpoint = ("diverged", None) if lost else ("done", "step-1")
        return SimpleNamespace(status=status, checkpoint=checkpoint, steps=7, seconds=2.0, run=None)

    monkeypatch.setattr(measuring, "train", train)
    monkeypatch.setattr(measuring, "Child", nullcontext)
    monkeypatch.setattr(measuring, "_bits_per_byte", lambda *_: np.full(3, 2.5))
    known = arms(profile([EVEN] * 2))
    pair = (known[Hogwild()], known[Sync()])
    target = SimpleNamespace(config=TrainConfig(optimizer="adamw"))
    if len(wild) == 2:
        with pytest.raises(Diverged, match="a smaller --lr"):
            measuring.try_both(target, pair, 8.0, lambda *_: None)
        return
    trial = measuring.try_both(target, pair, 8.0, lambda *_: None)
    assert trial.winner not in wild
    assert not trial.tie
    assert trained.count(wild[0]) == 1
    assert sorted(trial.bits_per_byte, key=math.isnan)[0] == 2.5


@pytest.mark.parametrize(
    ("load", "steps", "winner", "untold"),
    [
        (QUIET, {"hogwild": [9, 9, 9, 9], "sync": [7, 7, 7, 7]}, "sync", False),
        (QUIET, {"hogwild": [9, 2, 9, 9], "sync": [7, 7, 7, 7]}, "sync", False),
        (BUSY, {"hogwild": [9, 9, 8, 9], "sync": [7, 6, 7, 7]}, "sync", False),
        (BUSY, {"hogwild": [9, 2, 9, 9], "sync": [7, 7, 7, 7]}, "hogwild", True),
        (BUSY, {"hogwild": [9, 0, 9, 9], "sync": [7, 7, 7, 7]}, "hogwild", True),
    ],
)
def test_a_trial_is_believed_by_the_steps_of_its_turns_where_other_programs_work(
    monkeypatch, load, steps, winner, untold
):
    left = {name: list(turns) for name, turns in steps.items()}

    def take_turn(target, arm, *how):
        before = 0 if how[3] is None else how[3].steps
        reached = before + left[arm.name].pop(0)
        return SimpleNamespace(
            status="done", checkpoint=arm.name, steps=reached, seconds=2.0, run=arm.name
        )

    def held_out(child, target, checkpoint):
        return np.full(3, 2.0 if checkpoint.name == "sync" else 2.5)

    monkeypatch.setattr(measuring, "_train_slice", take_turn)
    monkeypatch.setattr(measuring, "Child", nullcontext)
    monkeypatch.setattr(measuring, "_bits_per_byte", held_out)
    monkeypatch.setattr(LoadWatch, "look", lambda watch: load)
    known = arms(profile([EVEN] * 2))
    target = None
    trial = measuring.try_both(target, (known[Hogwild()], known[Sync()]), 8.0, lambda *_: None)
    assert trial.winner == winner
    assert trial.untold == (str(BUSY) if untold else None)


def test_a_short_run_is_done_again_for_longer_until_every_worker_has_some_steps(monkeypatch):
    steps, seconds = [(40, 1), (90, 7), (400, 30)], list[float]()

    def train(settings, tell):
        assert settings.time is not None
        seconds.append(settings.time)
        return SimpleNamespace(run="run", steps=sum(steps[0]), seconds=2.0, workers=(1, 2))

    def read_times(run):
        return [{"steps": n} for n in steps.pop(0)]

    monkeypatch.setattr(measuring, "train", train)
    monkeypatch.setattr(measuring.Run, "read_times", read_times)
    monkeypatch.setattr(measuring, "worker_of", lambda one: one["steps"])
    costs, rounds_per_s = measuring.run_shortly(
        TrainConfig(optimizer="adamw"), seconds=2.0, tell=lambda step: None, strategy="hogwild"
    )
    assert seconds == [2.0, 8.0, 32.0]
    assert (costs, rounds_per_s) == ([400, 30], 215.0)
