"""Each rule of the advisor turns where its number does; the trial decides by paired losses."""

import shlex
from dataclasses import replace

import numpy as np
import pytest

from mlxhog.base.load import Load
from mlxhog.config.components import STRATEGIES
from mlxhog.config.config import TrainConfig
from mlxhog.errors import Diverged
from mlxhog.experiments.pairs import RunPair, TrainedRun
from mlxhog.experiments.short_runs import PLAIN, settings_for
from mlxhog.experiments.target import AnalysisTarget
from mlxhog.research import AdviseConfig, AnalyzeConfig, advise, workload
from mlxhog.research.advise import TIE_BITS, decide
from mlxhog.research.analysis.analyze import plan_of
from mlxhog.research.simulator.machine import Worker
from mlxhog.research.simulator.times import times_of
from mlxhog.research.workload import Profile, arms, recommend
from mlxhog.strategies import Hogwild, Serial, Sync
from tests.pairs import each_of
from tests.training.small import small_config

QUIET, BUSY = Load(0.0, 2, 0.4), Load(1.8, 2, 9.3)
EVEN, TAIL = times_of("constant", 0.1), times_of("exponential", 0.05, 0.05)


@pytest.fixture(autouse=True)
def _fewer_updates(monkeypatch):
    """Rules decide by the profile; predictions, of which all but one are only shown, are rough."""
    monkeypatch.setattr(workload, "SIMULATED", 1000)


def profile(times, sync_s=0.002, **known):
    workers = [Worker(name="w", compute=time) for time in times]
    alone = known.pop("alone", Worker(name="w", compute=times[-1]))
    return Profile(workers=workers, alone=alone, sync_s=sync_s, **known)


SLOW, CROWDED, TWICE = (times_of("constant", s) for s in (1.0, 0.4, 0.2))
ALONE = Worker(name="w", compute=EVEN)


@each_of(
    ("times", "known", "name", "rule"),
    [
        ([EVEN], {}, "serial", "the CPU is saturated"),
        ([CROWDED] * 4, {"alone": ALONE}, "serial", "the CPU is saturated"),
        ([TAIL] * 4, {"reproducible": True}, "round_robin", "runs must be reproducible"),
        ([EVEN] * 4, {"reproducible": True}, "sync", "runs must be reproducible"),
        ([EVEN] * 4, {}, "sync", "synchronization costs next to nothing"),
        ([TAIL] * 4, {"p_conf": 0.1, "density": 0.01}, "hogwild", "updates seldom overlap"),
        ([SLOW, *[EVEN] * 3], {}, "hogwild", "one worker is persistently slow"),
        ([SLOW, *[EVEN] * 3], {"batch": 16}, "sync(shares=speed)",
         "one worker is persistently slow"),
        ([TWICE, EVEN], {"batch": 16}, "sync(shares=speed)", "one worker is persistently slow"),
        ([TAIL] * 4, {}, "hogwild", "stragglers dominate"),
        ([EVEN] * 4, {"sync_s": 0.2}, "local_sgd", "averaging dominates"),
        ([EVEN] * 4, {"sync_s": 0.2, "adaptive": True}, "diloco", "averaging dominates"),
        ([EVEN] * 4, {"sync_s": 2.0}, "diloco", "averaging is very expensive"),
        ([EVEN] * 4, {"sync_s": 0.2, "heterogeneity": 1.0}, "scaffold",
         "averaging dominates, and data are non-IID"),
    ],
)  # fmt: skip
def test_every_row_of_the_table_decides_where_its_number_says(times, known, name, rule):
    advice = recommend(profile(times, **known))
    assert advice.second is None or advice.second.family != advice.first.family
    assert (advice.first.name, advice.rule.topic) == (name, rule)
    assert advice.rule.because(profile(times, **known))
    assert advice.rule.otherwise


@each_of(("sync_s", "steps"), [(0.02, 4), (20.0, 512)])
def test_the_reason_names_the_local_steps_of_the_flags(sync_s, steps):
    here = profile([EVEN] * 4, sync_s, adaptive=True)
    advice = recommend(here)
    assert advice.first.flags == f"--strategy 'diloco(average_every={steps})'"
    assert f" {steps} local steps" in advice.rule.because(here)


FOREIGN = [
    {"overlap": True}, {"read": "live", "predict": "none"}, {"determinism": "record"},
    {"determinism": "rounds", "strategy": "sync"}, {"follow": "texts"},
    {"cluster": "127.0.0.1:8600", "cluster_machine": "one"}, {"inject_stragglers": "1=4"},
]  # fmt: skip


@each_of("own", FOREIGN)
def test_runs_that_measure_leave_out_what_only_the_own_strategy_takes(tmp_path, own):
    config = small_config(tmp_path, **{"workers": "mlx:cpu*2", **own})
    for strategy in (Hogwild(), Serial(), Sync()):
        chosen = {**PLAIN, "strategy": strategy, "time": 1.0}
        assert settings_for(config, tmp_path, "short", **chosen).strategy == strategy
    target = AnalysisTarget(title="small", config=config, model=None)
    assert plan_of(target, AnalyzeConfig()).config.strategy == Serial(predict="none")


class Ended(Exception):
    """What a test looks at has been called."""


def test_a_trial_slows_no_worker_that_is_alone_and_reports_to_no_tracker(tmp_path, monkeypatch):
    def compare(a, b, *_):
        raise Ended(a.config, b.config)

    monkeypatch.setattr(advise, "Comparison", compare)
    here = arms(profile([EVEN] * 2, backend="mlx:cpu"))
    own = {"workers": "mlx:cpu*2", "inject_stragglers": "1=4", "report_to": "tensorboard"}
    target = AnalysisTarget(title="small", config=small_config(tmp_path, **own), model=None)
    with pytest.raises(Ended) as end:
        advise.try_both(target, (here[Serial()], here[Sync()]), print)
    shown = [(one.workers, one.inject_stragglers, one.trackers) for one in end.value.args]
    assert shown == [("mlx:cpu", None, ()), ("mlx:cpu*2", "1=4", ())]


@each_of("own", [{"optimizer": "sgd", "write": "racy"}, {"optimizer": "muon", "moments": "shared"}])
def test_only_strategies_that_the_other_options_allow_are_advised(tmp_path, monkeypatch, own):
    config = small_config(tmp_path, workers="mlx:cpu*2", **own)
    here = profile([EVEN] * 2, 0.02, adaptive=own["optimizer"] == "muon", backend="mlx:cpu")
    monkeypatch.setattr(advise, "measured_profile", lambda *_: here)
    target = AnalysisTarget(title="small", config=config, model=None)
    advice = advise.advise_on(target, AdviseConfig(), tries=False, tell=lambda *_: None)
    assert advice["chosen"] == "hogwild"  # not local_sgd or diloco, which are first in the rule
    for one in advice["expected"]:
        words = shlex.split(one["flags"])
        replace(config, strategy=STRATEGIES.read(words[1]))


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
    assert profile([EVEN] * 4, 0.1).period == 9  # 9 T_s / T_c at a tenth
    assert one.slow_worker is None


def pairs_of(first, second, *, steps=(9, 9, 9, 9), diverged=""):
    """Four pairs of runs with these bits per byte."""

    def run(bits, n, letter):
        status = "diverged" if letter in diverged else "done"
        return TrainedRun("run", status, bits, n, 100 * n, 2.0)

    return [
        RunPair(seed, "a", run(a, n, "a"), run(b, 7, "b"))
        for seed, (a, b, n) in enumerate(zip(first, second, steps, strict=True))
    ]


def test_a_trial_is_decided_by_pairs_and_a_tie_goes_to_who_repeats():
    known = arms(profile([EVEN] * 2))
    hogwild, sync = known[Hogwild()], known[Sync()]
    noise = np.random.default_rng(0).normal(3.0, 0.5, 4)  # seeds differ by far more than arms
    jitter = np.array([0.001, -0.001, 0.002, -0.002])

    def decided(second, **more):
        trial = decide((hogwild, sync), pairs_of(noise, second, **more), QUIET)
        return trial["winner"], trial["tie"]

    assert decided(noise - 0.1 + jitter) == ("sync", False)
    assert decided(noise + 0.1 + jitter) == ("hogwild", False)
    assert decided(noise + TIE_BITS / 2 + jitter) == ("sync", True)
    assert decided(noise + np.array([0.5, -0.4, 0.5, -0.4])) == ("sync", True)
    assert decided(np.full(4, 8.0) + jitter, diverged="b") == ("hogwild", False)
    with pytest.raises(Diverged, match="a smaller --lr"):
        decided(noise, diverged="ab")


@each_of("load", [QUIET, BUSY])
@each_of("letter", ["a", "b"])
def test_an_arm_that_diverged_in_more_runs_never_wins_a_trial(load, letter):
    known = arms(profile([EVEN] * 2))
    good, bad = known[Hogwild()], known[Sync()]
    bits, worst, steps = [2.0, 2.1, 1.9, 2.0], [8.0, 8.0, 8.0, 2.0], (9, 9, 9, 2)
    pairs = pairs_of(*((worst, bits) if letter == "a" else (bits, worst)), steps=steps)
    for k, pair in enumerate(pairs[:3]):
        lost = replace(getattr(pair, letter), status="diverged")
        pairs[k] = replace(pair, **{letter: lost})
    trial = decide((bad, good) if letter == "a" else (good, bad), pairs, load)
    assert (trial["winner"], trial["tie"]) == ("hogwild", False)


@each_of(
    ("load", "steps", "winner"),
    [(QUIET, (9, 2, 9, 9), "sync"), (BUSY, (9, 9, 8, 9), "sync"), (BUSY, (9, 2, 9, 9), "hogwild")],
)
def test_a_trial_is_believed_by_the_steps_of_its_runs_where_other_programs_work(
    load, steps, winner
):
    known = arms(profile([EVEN] * 2))
    pairs = pairs_of([2.5, 2.51, 2.5, 2.49], [2.0] * 4, steps=steps)
    trial = decide((known[Hogwild()], known[Sync()]), pairs, load)
    assert trial["winner"] == winner
    assert trial["inconclusive"] == (str(BUSY) if winner == "hogwild" else None)
