"""Suites are task configs and a sweep; the full one is the difficulty grid of the benchmark."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict

import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.study.definition import StudyDefinition
from mlxhog.mad.suites import SUITES, suite
from mlxhog.mad.tasks import find, make_task, resolve
from tests.pairs import each_of

LAYERS = "gated-conv swiglu gated-conv swiglu"
TASKS = ("in-context-recall", "memorization", "depo")
ATTENTION = {"depth": 2, "mixers": ["mh-attention"], "channels": ["swiglu"]}


def runs(name, **definition):
    return StudyDefinition(candidates=(LAYERS,), suite=name, **definition).runs(LAYERS)


RECORDED = {
    "smoke": "8b3387aba8d02693",
    "lite": "9da1072f0d3503f9",
    "full": "48a4b5df4be23c22",
    "reduced": "d21da959c417dbf3",
    "recall": "8275350c1ccbf738",
    "state": "2c85c65bd096da06",
    "knowledge": "6a405010f456f8cb",
    "lm": "ed2d50022c482d4e",
}
"""Digests of the values of every suite: runs of a changed one would not compare with earlier."""


@each_of("name", SUITES)
def test_a_suite_is_the_recorded_one_and_every_task_config_can_be_drawn(name):
    values = json.dumps(asdict(suite(name)), sort_keys=True, default=str)
    assert hashlib.sha256(values.encode()).hexdigest()[:16] == RECORDED[name]
    for one in suite(name).task_configs if name != "lm" else ():  # whose rows are text
        settings = resolve(one.task, one.settings)
        data = make_task(one.task, **{**one.settings, "train_rows": 2, "test_rows": 2})
        assert data.train_x.shape == (2, settings.length)
        assert data.test_x.shape == (2, settings.test_length)


def test_every_seed_has_its_runs_and_the_recipe_reaches_the_task():
    how = {"select": "val", "fuzzy_compat": True}
    configs = runs("smoke", seeds=(1, 2, 3), recipe=how)
    assert Counter(config.seed for config in configs) == {1: 6, 2: 6, 3: 6}
    for config in configs:
        assert config.settings["val_rows"] == config.settings["test_rows"] == 256
        assert config.settings.get("fuzzy_compat", True) is True


def test_a_suite_that_compares_widths_has_no_other_width():
    assert [run.key() for run in runs("recall", dim=64)] == [run.key() for run in runs("recall")]
    copies = runs("recall", dim=128, tasks=("selective-copying",))
    assert {config.dim for config in copies} == {128}


@each_of("own", [{"candidates": ("mh-attention swiglu",)}, {"space": ATTENTION}])
def test_heads_that_the_width_decides_are_those_of_every_width_that_a_suite_compares(own):
    study = StudyDefinition(**own, suite="lm:1024tok+recall")
    planned = study.runs(study.first)
    assert {run.dim: run.layers[0].heads for run in planned} == {128: 16, 64: 4, 32: 2, 16: 1}
    assert {run.candidate for run in planned} == {"mh-attention(h16) swiglu"}


def test_a_layer_of_a_space_that_a_width_of_the_suite_cannot_have_is_refused_before_any_run(
    monkeypatch,
):
    monkeypatch.setattr(StudyDefinition, "_check_text", lambda self: None)
    space = {**ATTENTION, "mixers": ["gated-conv", "mh-attention(h16)"]}
    with pytest.raises(ConfigError, match="mh-attention at width 16, of suite .*heads is 16"):
        StudyDefinition(space=space, suite="lm:1024tok+recall").check()


def test_a_suite_can_be_cut_to_some_tasks_and_others_have_their_defaults():
    cut = StudyDefinition(candidates=(LAYERS,), suite="lite", tasks=TASKS).measured
    assert tuple(one.task for one in cut.task_configs) == TASKS
    assert cut.task_configs[2].settings == asdict(find("depo")())
    with pytest.raises(ConfigError, match="no task"):
        runs("lite", tasks=("CRR",))


DECAYS = (0.0, 0.1)


@each_of(
    ("name", "definition", "points"),
    [
        ("lite", {"recipe": {"optimizer": "muon"}}, [(None, None)]),
        ("lite", {"recipe": {"optimizer": "muon", "lr": 1e-2}}, [(1e-2, None)]),
        ("full", {"recipe": {"lr": 3e-3}}, [(3e-3, decay) for decay in DECAYS]),
        ("lite", {}, [(5e-4, 0.0), (2e-3, 0.0)]),
        ("full", {"rates": (2e-3, 4e-3)}, [(lr, wd) for lr in (2e-3, 4e-3) for wd in DECAYS]),
    ],
)
def test_a_recipe_fixes_values_of_the_sweep_and_an_optimizer_has_its_own(name, definition, points):
    study = StudyDefinition(candidates=(LAYERS,), suite=name, **definition)
    own = [(one["lr"], one.get("weight_decay")) for one in study.measured.sweep]
    assert own == points
    configs = study.runs(LAYERS)
    assert len(configs) == study.runs_each
    assert {config.recipe.lr for config in configs} == {lr for lr, _ in points}
    named = definition.get("recipe", {}).get("optimizer", "adamw")
    assert {config.recipe.optimizer.name for config in configs} == {named}
