"""Scores follow their definition; intervals equal worked examples."""

import math
from dataclasses import replace

import pytest

from mlxhog.mad.objectives import OUT, ordered, parse_limit
from mlxhog.mad.options import Recipe
from mlxhog.mad.run import RunConfig
from mlxhog.mad.scores import scores
from mlxhog.mad.suites import Suite, TaskConfig
from mlxhog.mad.tasks.text import TEXT_TASK, score_of
from mlxhog.models.mad.sequence import parse
from tests.mad.report.sample import RECORD
from tests.pairs import each_of

A, B = "gated-conv swiglu", "swiglu gated-conv"
RATES = ({"lr": 1e-3}, {"lr": 1e-4})


def suite(*configs, sweep=RATES[:1]):
    """A suite of configs as texts: a task, and a label that is not baseline."""
    words = (one.partition(" ") for one in configs)
    made = tuple(TaskConfig(task, {}, label or "baseline") for task, _, label in words)
    return Suite("made", made, sweep, {}, dim=32)


TWO_TASKS = suite("one", "two")


def record(candidate, place, acc, *, lr=1e-3, seed=0, dim=32, **how):
    """A record; `place` is task and label, `token` and `val` are accuracies."""
    task, _, label = place.partition(" ")
    config = RunConfig(
        task=task, settings={"vocab": 16}, layers=parse(candidate), dim=dim, seed=seed,
        recipe=Recipe(lr=lr, steps=10),
    )  # fmt: skip
    token, val = how.pop("token", acc), how.pop("val", None)
    return replace(
        RECORD, key=config.key(), candidate=candidate, config=config.to_dict(),
        label=label or "baseline", acc_macro=acc, acc_token=token, val_token=val, val_macro=val,
        steps=10, seconds=2.0, state=100, **how,
    )  # fmt: skip


def complete(candidate, one, two, seed=0):
    return [record(candidate, "one", one, seed=seed), record(candidate, "two", two, seed=seed)]


def scored(records, measured, select="test"):
    """The scores of all seeds that have a record."""
    return scores(records, measured, sorted({one.seed for one in records}), select)


def test_a_score_is_the_best_of_a_sweep_then_the_mean_of_configs_then_the_mean_of_tasks():
    runs = [
        record(A, "one", 0.5, token=0.6),
        record(A, "one", 0.9, lr=1e-4, token=0.8),
        record(A, "one vocab=32", 0.3, token=0.4, best_achievable=0.86),
        record(A, "one vocab=32", 0.1, lr=1e-4, token=0.9),
        record(A, "two", 0.2),
        record(A, "two", 0.2, lr=1e-4),
    ]
    (row,) = scored(runs, suite("one", "one vocab=32", "two", sweep=RATES))
    assert row.tasks == pytest.approx({"one": (0.9 + 0.3) / 2, "two": 0.2})
    assert row.acc_token == pytest.approx({"one": (0.8 + 0.4) / 2, "two": 0.2})
    assert row.score == pytest.approx((0.6 + 0.2) / 2)
    assert row.best_achievable == {"one": pytest.approx(0.93), "two": 1.0}  # the best possible
    assert [run.config["recipe"]["lr"] for run in row.best] == [1e-4, 1e-3, 1e-3]
    assert (row.status, row.missing, row.n_runs, row.seconds) == ("done", (), 6, 12.0)
    expected = sum(math.prod(spec.shape) for layer in parse(A) for spec in layer.param_spec(32))
    assert row.params == expected + 2 * 32  # of the layers and their norms
    assert row.layers == ("gated-conv", "swiglu")


def test_parameters_and_state_are_those_of_the_suites_width_whatever_widths_configs_have():
    wide, own = suite("one dim=64", "one dim=32").task_configs
    measured = replace(suite(), task_configs=(replace(wide, dim=64), own))
    runs = [
        replace(record(A, f"one dim={dim}", acc, seed=seed, dim=dim), state=10 * dim)
        for dim, acc, seed in ((64, 0.9, 0), (32, 0.5, 0), (64, 0.7, 1), (32, 0.3, 1))
    ]
    (row,) = scored(runs, measured)
    assert (row.params, row.state) == (scored(runs[1:2], measured)[0].params, 320)
    (configs,) = row.task_configs.values()
    assert configs["dim=64"] == {"acc_macro": pytest.approx(0.8), "dim": 64, "state": 640}
    assert configs["dim=32"] == {"acc_macro": pytest.approx(0.4), "dim": 32, "state": 320}


LOST = record(A, "one", math.nan, status="diverged")
STOPPED = record(A, "two", 0.3, status="interrupted")
MISSING = ("one baseline lr 0.001 seed 0",)


@each_of(
    ("measured", "runs", "score", "status", "numbers"),
    [
        # a lost run scores 0, is counted, and loses to any that learned
        (suite("one", sweep=RATES), [LOST, record(A, "one", 0.4, lr=1e-4)], 0.4, "done",
         {"n_diverged": 1}),
        # a setting on which every point is lost stays in the mean
        (suite("one", "one vocab=32"),
         [record(A, "one", 0.8), record(A, "one vocab=32", 0.7, status="failed")], 0.4, "done",
         {"n_failed": 1}),
        # an interrupted run is missing until another one of its place has ended
        (TWO_TASKS, [record(A, "one", 0.5), STOPPED], 0.5, "partial", {"n_runs": 1}),
        (TWO_TASKS, [record(A, "one", 0.5), STOPPED, record(A, "two", 0.7)], 0.6, "done",
         {"missing": ()}),
        # runs that are not of the suite do not count
        (TWO_TASKS, [*complete(A, 0.2, 0.4), record(A, "three", 1.0),
                     record(A, "one vocab=99", 1.0), record(A, "one", 1.0, lr=0.5)],
         0.3, "done", {"n_runs": 2}),
        # a partial row names what is missing
        (TWO_TASKS, [record(A, "two", 1.0)], 1.0, "partial",
         {"missing": MISSING, "tasks": {"two": 1.0}}),
        # a seed that lacks a run is left out of the mean
        (TWO_TASKS, [*complete(A, 0.5, 0.5), record(A, "two", 1.0, seed=1)], 0.5, "partial",
         {"seeds": {0: 0.5}, "interval": None, "missing": ("one baseline lr 0.001 seed 1",)}),
        # a pruned one keeps what it reached
        (TWO_TASKS, [record(A, "one", 0.4, status="pruned")], 0.4, "pruned", {}),
    ],
)  # fmt: skip
def test_lost_missing_and_foreign_runs_count_as_they_should(measured, runs, score, status, numbers):
    (row,) = scored(runs, measured)
    assert (row.score, row.status) == (pytest.approx(score), status)
    assert {name: getattr(row, name) for name in numbers} == numbers


def test_the_split_that_selects_chooses_within_a_sweep_and_orders_the_candidates():
    runs = [record(A, "one", 0.9, val=0.5), record(A, "one", 0.7, val=0.6, lr=1e-4)]
    for select, score, val in (("val", 0.7, 0.6), ("test", 0.9, 0.5)):
        (row,) = scored(runs, suite("one", sweep=RATES), select)
        assert (row.score, row.val_score) == (score, val)
    runs = [record(A, "one", 0.9, val=0.5), record(B, "one", 0.7, val=0.6)]
    for select, order in (("test", [(A, 0.9), (B, 0.7)]), ("val", [(B, 0.6), (A, 0.5)])):
        rows = scored(runs, suite("one"), select)
        assert [(row.candidate, row.selection_score) for row in rows] == order


def test_a_candidate_that_is_pruned_before_any_seed_is_complete_has_a_score():
    runs = [
        record(A, "one", 0.5), record(A, "one", 0.7, seed=1),
        record(A, "two", 0.2, status="pruned"),
    ]  # fmt: skip
    (row,) = scored(runs, suite("one", "two", "three"))
    assert (row.status, row.tasks) == ("pruned", pytest.approx({"one": 0.6, "two": 0.2}))
    assert row.intervals == {"one": None, "two": None}


def test_a_lost_run_counts_as_0_of_the_split_that_selects():
    lost = [record(A, "one", 0.9, val=0.2), record(A, "two", 0.0, status="failed")]
    sound = [record(B, task, 0.4, val=0.4) for task in ("one", "two")]
    rows = scored([*lost, *sound], TWO_TASKS, "val")
    assert [(row.candidate, row.selection_score) for row in rows] == [(B, 0.4), (A, 0.1)]


ANY = "params >= 1"


@each_of("limit", [[], [ANY]])
def test_the_split_that_selects_orders_by_score_whatever_the_limits(limit):
    runs = [record(A, "one", 0.9, val=0.5), record(B, "one", 0.7, val=0.6)]
    rows = scored(runs, suite("one"), "val")
    rows = ordered(rows, "score", [*map(parse_limit, limit)], select=True)
    assert [(row.candidate, row.selection_score) for row in rows] == [(B, 0.6), (A, 0.5)]


def test_a_limit_on_the_score_is_one_on_the_split_that_selects():
    runs = [record(A, "one", 0.9, val=0.5), record(B, "one", 0.7, val=0.6)]
    for select, beyond in (("val", {A: True, B: False}), ("test", {A: False, B: False})):
        rows = scored(runs, suite("one"), select)
        rows = ordered(rows, "score", [parse_limit("score >= 0.55")], select=True)
        assert {row.candidate: bool(row.beyond) for row in rows} == beyond


def test_lost_candidates_are_behind_partial_and_pruned_ones_whether_a_limit_is_kept_or_none():
    lost = [record(B, task, 0.0, status="diverged") for task in ("one", "two")]
    pruned = record("swiglu", "one", 0.8, status="pruned")
    rows = scored([*lost, record(A, "one", 0.9), pruned], TWO_TASKS)
    assert [row.candidate for row in rows] == [A, "swiglu", B]
    limited = ordered(rows, "score", [parse_limit(ANY)], select=True)
    assert limited[-1].candidate == B


@each_of("objective", ["score", "params", "state_bytes", "peak_memory_bytes"])
def test_pruned_and_lost_candidates_are_never_the_best_by_an_objective(objective):
    pruned = record(A, "one", 0.9, status="pruned")
    lost = [record("swiglu", task, 0.0, status="failed") for task in ("one", "two")]
    runs = [replace(one, state=0) for one in (pruned, *lost)]
    rows = scored([*runs, *complete(B, 0.3, 0.3)], TWO_TASKS)
    rows = [replace(row, measures={"peak_memory_bytes": 2e9}) for row in rows]
    rows = ordered(rows, objective, [parse_limit(ANY)], select=True)
    assert [row.candidate for row in rows] == [B, A, "swiglu"]
    assert rows[0].selection_score > OUT
    assert [row.selection_score for row in rows[1:]] == [OUT, OUT]


def text_run(candidate, bits, seed=0, **how):
    """A run on text; one without bits failed."""
    if bits is None:
        return record(candidate, TEXT_TASK, 0.0, seed=seed, status="failed", **how)
    measures = {"dim": 32, "val_bits_per_byte": bits}
    return record(candidate, TEXT_TASK, score_of(bits), seed=seed, measures=measures, **how)


def test_validation_rows_order_tasks_beside_text_whose_score_is_of_validation_text():
    runs = [
        text_run(A, 2.0), record(A, "one", 0.9, val=0.2),
        text_run(B, 2.0), record(B, "one", 0.5, val=0.6),
    ]  # fmt: skip
    for select, order, vals in (("val", [B, A], [0.675, 0.475]), ("test", [A, B], [0.475, 0.675])):
        rows = scored(runs, suite(TEXT_TASK, "one"), select)
        rows = ordered(rows, "val_bits_per_byte", [], select=False)
        assert [row.candidate for row in rows] == order
        assert [row.val_score for row in rows] == pytest.approx(vals)
    assert scored([text_run(A, 2.0)], suite(TEXT_TASK))[0].val_score is None


def test_a_seed_that_failed_on_text_counts_with_the_most_bits_as_one_that_diverged():
    runs = [text_run(A, 2.0), text_run(A, None, 1), text_run(B, 2.1), text_run(B, 2.1, 1)]
    rows = ordered(scored(runs, suite(TEXT_TASK)), "val_bits_per_byte", [], select=False)
    bits = [(row.candidate, row.measures["val_bits_per_byte"]) for row in rows]
    assert bits == [(B, pytest.approx(2.1)), (A, 5.0)]


def test_a_candidate_whose_text_failed_is_not_on_the_front():
    failed = replace(text_run(A, None), state=0), replace(record(A, "one", 0.9), state=0)
    runs = [*failed, text_run(B, 2.0), record(B, "one", 0.5)]
    rows = ordered(scored(runs, suite(TEXT_TASK, "one")), "val_bits_per_byte", [], select=False)
    assert {row.candidate: row.is_on_front for row in rows} == {A: False, B: True}
