"""Suites are lists of settings and points; the full one is the benchmark's difficulty grid."""

from collections import Counter, defaultdict
from dataclasses import asdict, replace

import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad.options import PUBLISHED, Protocol
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.study import Study
from mlxhog.mad.suites import SUITES, at_dim, expand, fixed, only, suite, with_rates
from mlxhog.mad.tasks import BENCHMARK, find, make_task, resolve
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.layers import make

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


LONG = {"seq_len": {256, 512, 1024}}
ROWS = {"train_rows": {6400, 3200, 1600, 800}}
RECALL = {"vocab": {32, 64, 128}, **LONG, **ROWS}
GRID = {
    "in-context-recall": RECALL,
    "fuzzy-in-context-recall": RECALL,
    "noisy-in-context-recall": {
        **RECALL, "vocab": {48, 80, 144}, "frac_noise": {0.4, 0.6, 0.8}
    },
    "selective-copying": {
        "vocab": {32, 64, 128}, "seq_len": {512, 1024}, **ROWS, "tokens_to_copy": {32, 64, 96}
    },
    "compression": {"vocab": {32, 64, 128}, "seq_len": {64, 128, 256}, **ROWS},
    "memorization": {"vocab": {512, 1024, 2048, 4096, 8192}},
}  # fmt: skip


def test_the_grid_is_that_of_the_benchmark():
    results = {task: defaultdict(set) for task in BENCHMARK}
    for setting in suite("full").settings:
        if setting.label != "baseline":
            name = setting.label.split("=")[0]
            results[setting.task][name].add(setting.settings[name])
    assert results == GRID


def test_the_full_suite_is_trained_by_the_protocol_of_the_reference_with_its_fixes():
    configs = list(runs(suite("full"), LAYERS, seeds=[0]))
    hows = {config.protocol for config in configs}
    points = {(how.lr, how.weight_decay) for how in hows}
    assert points == {(lr, decay) for lr in (1e-4, 5e-4, 1e-3) for decay in (0.0, 0.1)}
    assert {replace(how, lr=1.0, weight_decay=0.0) for how in hows} == {
        Protocol(
            optimizer=PUBLISHED, lr=1.0, clip=0.0, schedule="cosine", lr_floor=1e-6, batch_size=128,
            epochs=200, eval_every=None, stop_accuracy=0.999, patience=None, labels="dense",
            select="test", wd_all=False, fuzzy_compat=False,
        )
    }  # fmt: skip
    assert {(config.dim, config.position) for config in configs} == {(128, "none")}


@pytest.mark.parametrize("name", SUITES)
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


def test_the_state_suite_trains_on_rows_of_40_and_scores_rows_of_2048():
    configs = runs(suite("state"), LAYERS, seeds=[0])
    groups = [config.settings.get("group", config.task) for config in configs]
    assert groups == ["parity", "Z60", "S3", "A5", "S5", "dyck"]
    lengths = {(one.settings["seq_len"], one.settings["test_length"]) for one in configs}
    assert lengths == {(40, 2048)}
    assert {config.protocol.stop_accuracy for config in configs} == {1.0}


def test_reduced_changes_one_setting_at_a_time_beside_those_of_smoke():
    reduced, smoke = suite("reduced"), suite("smoke")
    firsts = [setting for setting in reduced.settings if setting.label == "baseline"]
    first = {setting.task: setting.settings for setting in firsts}
    assert first == {setting.task: setting.settings for setting in smoke.settings}
    for setting in reduced.settings:
        changed = {
            f"{name}={value}"
            for name, value in setting.settings.items()
            if value != first[setting.task][name]
        }
        assert changed == {setting.label} - {"baseline"}
    assert (reduced.runs, reduced.points, reduced.dim) == (15, smoke.points, smoke.dim)
    steps = {one.task: one.protocol.steps for one in runs(reduced, LAYERS, seeds=[0])}
    assert {task: n for task, n in steps.items() if n != 1200} == {
        "in-context-recall": 3600, "fuzzy-in-context-recall": 3600, "noisy-in-context-recall": 3600
    }  # fmt: skip


def test_every_seed_has_its_runs_and_the_protocol_reaches_the_task():
    seeds = (seed for seed in (1, 2, 3))
    configs = list(
        runs(suite("smoke"), LAYERS, seeds, protocol={"select": "val", "fuzzy_compat": True})
    )
    assert Counter(config.seed for config in configs) == {1: 6, 2: 6, 3: 6}
    for config in configs:
        assert config.settings["val_rows"] == config.settings["test_rows"] == 256
        assert config.settings.get("fuzzy_compat", True) is True


def test_recall_compares_numbers_of_pairs_at_three_widths_and_copies_of_four_lengths():
    configs = {}
    for config in expand(suite("recall"), LAYERS, [0]):
        configs[config.label] = config
        assert all(f"{name}={value}" in config.label for name, value in _own(config).items())
    widths = Counter((config.task, config.dim) for config in configs.values())
    assert widths == {
        **{("multi-query-associative-recall", dim): 2 for dim in (64, 32, 16)},
        ("selective-copying", 64): 4,
        ("selective-grammar", 64): 2,
    }
    assert len({config.key() for config in configs.values()}) == len(configs) == 12


def _own(config):
    """What a label of suite recall says."""
    names = {"MQAR": ("n_pairs",), "SC": ("seq_len",), "SG": ("gap_prob",)}[find(config.task).short]
    own = {name: config.settings[name] for name in names}
    return {**own, "dim": config.dim} if names == ("n_pairs",) else own


def test_a_suite_that_compares_widths_has_no_other_width():
    with pytest.raises(ConfigError, match=r"on multi-query-.*: 64 and 32, 16; leave the width out"):
        at_dim(suite("recall"), 128)
    assert at_dim(suite("recall"), 64) == suite("recall")
    copies = at_dim(only(suite("recall"), ["SC"]), 128)
    assert {config.dim for config in runs(copies, LAYERS, [0])} == {128}


def test_the_longest_runs_of_a_candidate_come_first_unless_runs_may_be_pruned():
    study = Study(candidates=("gated-conv",), suite="reduced", tasks=("in-context-recall",))
    lengths = [
        [run.settings["seq_len"] for run in Planning(one).runs("gated-conv")]
        for one in (study, replace(study, prune=True))
    ]
    assert lengths == [[64, 32, 32], [32, 32, 64]]


def test_a_suite_can_be_cut_to_some_tasks():
    cut = only(suite("lite"), ["CR", "memorization"])
    assert [setting.task for setting in cut.settings] == ["in-context-recall", "memorization"]
    with pytest.raises(ConfigError, match="no task"):
        only(suite("lite"), ["CRR"])


def test_a_task_that_a_suite_lacks_has_the_defaults_of_its_settings():
    cut = only(suite("lite"), ["depo", "CR"])
    assert [(one.task, one.label) for one in cut.settings] == [
        ("in-context-recall", "baseline"),
        ("depo", "baseline"),
    ]
    assert cut.settings[1].settings == asdict(find("depo")())


def test_a_suite_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        suite("smke")
    with pytest.raises(ConfigError, match="choose one of smoke, lite, full, .*knowledge"):
        suite("x")


def test_another_optimizer_has_its_own_step_size_in_place_of_the_suites_points():
    lite = fixed(suite("lite"), {"optimizer": "muon"})
    assert lite.points == ({"lr": None},)
    configs = list(expand(lite, LAYERS, [0], protocol={"optimizer": "muon"}))
    assert {(one.protocol.optimizer.name, one.protocol.lr) for one in configs} == {("muon", None)}
    chosen = fixed(suite("lite"), {"optimizer": "muon", "lr": 1e-2})
    assert chosen.points == ({"lr": 1e-2},)


def test_a_protocol_that_fixes_the_step_size_leaves_one_point_for_each_other_value():
    full = fixed(suite("full"), {"lr": 3e-3})
    assert full.points == (
        {"lr": 3e-3, "weight_decay": 0.0},
        {"lr": 3e-3, "weight_decay": 0.1},
    )
    results = list(expand(full, LAYERS, [0], protocol={"lr": 3e-3}))
    assert len(results) == full.runs == 66 * 2
    assert {config.protocol.lr for config in results} == {3e-3}
    assert fixed(suite("lite"), {}) == suite("lite")


def test_rates_replace_the_step_sizes_and_keep_the_suites_own_for_comparison():
    full = with_rates(suite("full"), (2e-3, 4e-3))
    assert full.fixed_lr == 5e-4
    assert full.points == tuple(
        {"lr": lr, "weight_decay": decay} for lr in (5e-4, 2e-3, 4e-3) for decay in (0.0, 0.1)
    )
    assert with_rates(suite("smoke"), (1e-3, 2e-3)).lrs == [1e-3, 2e-3]
    assert [suite(name).fixed_lr for name in ("smoke", "lite")] == [2e-3, 5e-4]
