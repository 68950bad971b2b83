"""Scores follow their definition; intervals and rank correlations equal worked examples."""

import math
from dataclasses import replace

import pytest

from mlxhog.mad.options import point_name
from tests.mad.search.recorded import layers, record, scored, setting, suite

A = "gated-conv swiglu"
B = "swiglu gated-conv"
TWO_TASKS = suite(setting("one"), setting("two"))


def complete(candidate, one, two, seed=0):
    return [
        record(candidate, "one", one, seed=seed),
        record(candidate, "two", two, seed=seed),
    ]


def test_a_score_is_the_best_point_then_the_mean_of_settings_then_the_mean_of_tasks():
    measured = suite(
        setting("one"),
        setting("one", "vocab=32"),
        setting("two"),
        points=({"lr": 1e-3}, {"lr": 1e-4}),
    )
    runs = [
        record(A, "one", 0.5, lr=1e-3, token=0.6),
        record(A, "one", 0.9, lr=1e-4, token=0.8),
        record(A, "one", 0.3, lr=1e-3, label="vocab=32", token=0.4),
        record(A, "one", 0.1, lr=1e-4, label="vocab=32", token=0.9),
        record(A, "two", 0.2, lr=1e-3),
        record(A, "two", 0.2, lr=1e-4),
    ]
    (row,) = scored(runs, measured)
    assert row.tasks == pytest.approx({"one": (0.9 + 0.3) / 2, "two": 0.2})
    assert row.acc_token == pytest.approx({"one": (0.8 + 0.4) / 2, "two": 0.2})
    assert row.score == pytest.approx((0.6 + 0.2) / 2)
    assert [run.config["protocol"]["lr"] for run in row.best] == [1e-4, 1e-3, 1e-3]
    assert (row.status, row.missing, row.n_runs, row.seconds) == ("done", (), 6, 12.0)


def test_parameters_and_state_are_those_of_the_suites_width_whatever_widths_settings_have():
    def run(label, dim, acc, seed):
        one = record(A, "one", acc, label=label, seed=seed)
        return replace(one, config={**one.config, "dim": dim}, state=10 * dim)

    wide = replace(setting("one", "dim=64"), dim=64)
    measured = suite(wide, setting("one", "dim=32"))
    runs = [run("dim=64", 64, 0.9, 0), run("dim=32", 32, 0.5, 0), run("dim=64", 64, 0.7, 1)]
    runs.append(run("dim=32", 32, 0.3, 1))
    (row,) = scored(runs, measured)
    assert (row.params, row.state) == (scored(runs[1:2], measured)[0].params, 320)
    assert row.settings == {
        "one": {
            "dim=64": {"acc_macro": pytest.approx(0.8), "dim": 64, "state": 640},
            "dim=32": {"acc_macro": pytest.approx(0.4), "dim": 32, "state": 320},
        }
    }


def test_a_diverged_run_scores_0_is_counted_and_loses_to_any_that_learned():
    measured = suite(setting("one"), points=({"lr": 1e-3}, {"lr": 1e-4}))
    lost = [
        record(A, "one", math.nan, status="diverged"),
        record(A, "one", 0.9, lr=1e-4, status="diverged"),
    ]
    (row,) = scored(lost, measured)
    assert (row.score, row.n_diverged, row.status) == (0.0, 2, "diverged")
    (row,) = scored([lost[0], record(A, "one", 0.4, lr=1e-4)], measured)
    assert (row.score, row.n_diverged, row.status) == (0.4, 1, "done")


def test_a_setting_on_which_every_point_is_lost_stays_in_the_mean():
    measured = suite(setting("one"), setting("one", "vocab=32"))
    runs = [record(A, "one", 0.8), record(A, "one", 0.7, label="vocab=32", status="failed")]
    (row,) = scored(runs, measured)
    assert (row.score, row.n_failed, row.status) == (0.4, 1, "done")


def test_a_partial_row_says_which_runs_are_missing_and_stands_below_the_finished_ones():
    runs = [*complete(A, 0.1, 0.1), record(B, "two", 1.0)]
    first, second = scored(runs, TWO_TASKS)
    assert (first.candidate, first.status) == (A, "done")
    assert (second.candidate, second.status, second.score) == (B, "partial", 1.0)
    assert second.missing == ("one baseline lr 0.001 seed 0",)
    assert second.tasks == {"two": 1.0}


def test_an_interrupted_run_is_missing_until_another_one_of_its_place_has_ended():
    stopped = record(A, "two", 0.3, status="interrupted")
    (row,) = scored([record(A, "one", 0.5), stopped], TWO_TASKS)
    assert (row.status, row.score) == ("partial", 0.5)
    (row,) = scored([record(A, "one", 0.5), stopped, record(A, "two", 0.7)], TWO_TASKS)
    assert (row.status, row.score) == ("done", pytest.approx(0.6))


def test_runs_that_are_not_of_the_suite_do_not_count():
    others = [
        record(A, "three", 1.0),
        record(A, "one", 1.0, label="vocab=99"),
        record(A, "one", 1.0, lr=0.5),
    ]
    (row,) = scored([*complete(A, 0.2, 0.4), *others], TWO_TASKS)
    assert (row.score, row.n_runs) == (pytest.approx(0.3), 2)


def test_several_seeds_give_their_mean_and_a_95_percent_t_interval():
    runs = [run for seed, acc in enumerate((0.5, 0.6, 0.7)) for run in complete(A, acc, acc, seed)]
    (row,) = scored(runs, TWO_TASKS)
    assert row.seeds == pytest.approx({0: 0.5, 1: 0.6, 2: 0.7})
    assert row.score == pytest.approx(0.6)
    assert row.interval == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    (one,) = scored(complete(A, 0.5, 0.5), TWO_TASKS)
    assert one.interval is None


def test_a_seed_that_lacks_a_run_is_left_out_of_the_mean_and_named():
    runs = [*complete(A, 0.5, 0.5, 0), record(A, "two", 1.0, seed=1)]
    (row,) = scored(runs, TWO_TASKS)
    assert (row.score, row.interval, row.seeds) == (0.5, None, {0: 0.5})
    assert (row.status, row.missing) == ("partial", ("one baseline lr 0.001 seed 1",))


def test_two_step_sizes_never_have_one_name():
    rates = (1e-3, 1.4e-3, 1.5e-3, 2e-3, None)
    names = [point_name({"lr": lr, "weight_decay": 0.1}) for lr in rates]
    expected = ("1e-03", "0.0014", "0.0015", "2e-03", "auto")
    assert names == [f"lr {rate} wd 0.1" for rate in expected]


def test_selecting_by_validation_rows_scores_the_test_rows_of_the_chosen_run():
    measured = suite(setting("one"), points=({"lr": 1e-3}, {"lr": 1e-4}))
    runs = [
        record(A, "one", 0.9, val=0.5),
        record(A, "one", 0.7, val=0.6, lr=1e-4),
    ]
    (row,) = scored(runs, measured, "val")
    assert (row.score, row.val_score) == (0.7, 0.6)
    (row,) = scored(runs, measured, "test")
    assert (row.score, row.val_score) == (0.9, 0.5)


def test_candidates_are_ordered_by_the_rows_that_select():
    runs = [record(A, "one", 0.9, val=0.5), record(B, "one", 0.7, val=0.6)]
    by_test, by_val = (scored(runs, suite(setting("one")), select) for select in ("test", "val"))
    assert [(row.candidate, row.worth) for row in by_test] == [(A, 0.9), (B, 0.7)]
    assert [(row.candidate, row.worth) for row in by_val] == [(B, 0.6), (A, 0.5)]
    assert [row.score for row in by_val] == [0.7, 0.9]


def test_a_pruned_candidate_keeps_what_it_reached_below_the_finished_ones():
    runs = [*complete(A, 0.1, 0.1), record(B, "one", 0.4, status="pruned")]
    first, second = scored(runs, TWO_TASKS)
    assert (first.candidate, second.status, second.score) == (A, "pruned", 0.4)


def test_the_best_possible_score_of_a_task_stands_beside_it():
    measured = suite(setting("one"), setting("one", "vocab=4096"))
    runs = [record(A, "one", 0.9), record(A, "one", 0.8, label="vocab=4096", ceiling=0.86)]
    (row,) = scored(runs, measured)
    assert row.ceiling == {"one": pytest.approx(0.93)}


def test_parameters_are_those_of_the_layers_and_their_norms():
    (row,) = scored(complete(A, 0.5, 0.5), TWO_TASKS)
    expected = sum(math.prod(spec.shape) for layer in layers(A) for spec in layer.param_spec(32))
    assert row.params == expected + 2 * 32
    assert row.layers == ("gated-conv", "swiglu")
