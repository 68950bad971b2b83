"""Suites are lists of settings and points; the full one is the benchmark's difficulty grid."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict

import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.suites import SUITES, at_dim, expand, fixed, only, suite, with_rates
from mlxhog.mad.tasks import find, make_task, resolve
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers import make
from tests.pairs import each_of

LAYERS = (make("gated-conv"), make("swiglu")) * 2


def runs(measured, *arguments, **how):
    return list(expand(measured, *arguments, **how))


def test_the_grid_has_66_settings_and_396_runs_for_an_architecture():
    full = suite("full")
    assert Counter(setting.task for setting in full.settings) == {
        "in-context-recall": 11,
        "fuzzy-in-context-recall": 11,
        "noisy-in-context-recall": 14,
        "selective-copying": 13,
        "compression": 11,
        "memorization": 6,
    }
    configs = list(runs(full, LAYERS, seeds=[0]))
    assert full.runs == len(configs) == 396
    assert len({config.key() for config in configs}) == 396


RECORDED = {
    "smoke": "e1ab124f21d8ac42",
    "lite": "a71df1fffa8fe699",
    "full": "281434a4d0a5127c",
    "reduced": "e914df021ac2aca2",
    "recall": "a6ddfea0175ad205",
    "state": "6ad37744db08245a",
    "knowledge": "6a55c177da759882",
}
"""Digests of the values of every suite: runs of a changed one would not compare with earlier."""


@each_of("name", SUITES)
def test_the_settings_points_and_protocol_of_a_suite_are_the_recorded_ones(name):
    recorded = {**asdict(suite(name)), "own_lr": None}  # a field at that time
    del recorded["protocol"]["optimizer"]["use"]  # of a run, not of a suite
    values = json.dumps(recorded, sort_keys=True, default=str)
    assert hashlib.sha256(values.encode()).hexdigest()[:16] == RECORDED[name]


@each_of("name", SUITES)
def test_every_setting_of_a_suite_can_be_drawn_and_has_a_model(name):
    for setting in suite(name).settings:
        settings = resolve(setting.task, setting.settings)
        data = make_task(setting.task, **{**setting.settings, "train_rows": 2, "test_rows": 2})
        model = MADConfig(
            vocab_size=settings.vocab,
            hidden_size=setting.dim or suite(name).dim,
            layers=LAYERS,
            max_length=settings.test_length,
            backbone=find(setting.task).backbone,
        )
        assert data.train_x.shape == (2, settings.length)
        assert data.test_x.shape == (2, model.max_length)


def test_every_seed_has_its_runs_and_the_protocol_reaches_the_task():
    seeds = (seed for seed in (1, 2, 3))
    configs = list(
        runs(suite("smoke"), LAYERS, seeds, protocol={"select": "val", "fuzzy_compat": True})
    )
    assert Counter(config.seed for config in configs) == {1: 6, 2: 6, 3: 6}
    for config in configs:
        assert config.settings["val_rows"] == config.settings["test_rows"] == 256
        assert config.settings.get("fuzzy_compat", True) is True


def test_a_suite_that_compares_widths_has_no_other_width():
    with pytest.raises(ConfigError, match=r"on multi-query-.*: 64 and 32, 16; leave the width out"):
        at_dim(suite("recall"), 128)
    assert at_dim(suite("recall"), 64) == suite("recall")
    copies = at_dim(only(suite("recall"), ["SC"]), 128)
    assert {config.dim for config in runs(copies, LAYERS, [0])} == {128}


def test_a_suite_can_be_cut_to_some_tasks_and_others_have_their_defaults():
    cut = only(suite("lite"), ["CR", "memorization", "depo"])
    tasks = ["in-context-recall", "memorization", "depo"]
    assert [setting.task for setting in cut.settings] == tasks
    assert cut.settings[2].settings == asdict(find("depo")())
    with pytest.raises(ConfigError, match="no task"):
        only(suite("lite"), ["CRR"])


@each_of(
    ("chosen", "protocol", "points"),
    [
        ("lite", {"optimizer": "muon"}, [(None, None)]),
        ("lite", {"optimizer": "muon", "lr": 1e-2}, [(1e-2, None)]),
        ("full", {"lr": 3e-3}, [(3e-3, 0.0), (3e-3, 0.1)]),
        ("lite", {}, [(5e-4, 0.0), (2e-3, 0.0)]),
    ],
)
def test_a_protocol_fixes_values_of_the_points_and_an_optimizer_has_its_own(
    chosen, protocol, points
):
    own = fixed(suite(chosen), protocol)
    assert [(point["lr"], point.get("weight_decay")) for point in own.points] == points
    configs = list(expand(own, LAYERS, [0], protocol=protocol))
    assert len(configs) == own.runs
    assert {config.protocol.lr for config in configs} == {lr for lr, _ in points}
    assert {config.protocol.optimizer.name for config in configs} == {
        protocol.get("optimizer", "adamw")
    }


def test_rates_replace_the_step_sizes():
    full = with_rates(suite("full"), (2e-3, 4e-3))
    assert full.points == tuple(
        {"lr": lr, "weight_decay": decay} for lr in (2e-3, 4e-3) for decay in (0.0, 0.1)
    )
