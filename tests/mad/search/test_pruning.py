import itertools
from dataclasses import replace

import pytest

from mlxhog.config.plugin_file import Plugin
from mlxhog.mad.options import Protocol
from mlxhog.mad.run import Point, RunConfig
from mlxhog.mad.search.pruning import Halving, Rungs
from mlxhog.mad.study import study as definition
from mlxhog.mad.study.session import Planning
from mlxhog.mad.study.store import StudyRecord
from mlxhog.mad.suites import expand, suite
from tests.mad.report.sample import CONV, runs
from tests.mad.search.recorded import layers

COPY, COMPRESS, RECALL = "selective-copying", "compression", "in-context-recall"
A, B, C, D, E = (f"gated-conv(kernel={k})" for k in (2, 3, 4, 5, 6))


def planned(candidate, task, *, lr=1e-3, steps=3000, select="test"):
    return RunConfig(
        task=task,
        settings={"train_rows": 640},
        layers=layers("gated-conv"),
        plugins=(Plugin("", candidate),),  # so that each candidate has keys of its own
        dim=8,
        protocol=Protocol(lr=lr, steps=steps, batch_size=64, select=select),
        seed=0,
        candidate=candidate,
        label="baseline",
    )


def point(step, accuracy):
    return Point(step=step, seconds=1.0, loss=1.0, acc_token=0.0, acc_macro=accuracy)


class Study:
    """Runs that end, and a pruner that takes their results."""

    def __init__(self):
        self.curves = {}
        self.records = []
        self.pruner = self.fresh()

    def fresh(self):
        return Halving(lambda key: self.curves[key])

    def rebuilt(self):
        """The state of a resumed study."""
        pruner = self.fresh()
        for run, record in self.records:
            pruner.ended(run, record)
        return pruner

    def end(self, run, curve, status="done", *, test=None):
        last = curve[-1]
        self.curves[run.key()] = list(curve)
        record = StudyRecord(
            key=run.key(),
            candidate=run.candidate,
            config=run.to_dict(),
            label=run.label,
            status=status,
            acc_token=0.0,
            acc_macro=last.acc_macro if test is None else test,
            val_token=None if test is None else 0.0,
            val_macro=None if test is None else last.acc_macro,
            ceiling=1.0,
            loss=1.0,
            steps=last.step,
            seconds=1.0,
            params=1,
            state=1,
            reason="",
            host="here",
            at="2026-01-01T00:00:00.000+00:00",
        )
        self.records.append((run, record))
        self.pruner.ended(run, record)

    def finish(self, candidate, task, at_300, end):
        self.end(planned(candidate, task), [point(300, at_300), point(3000, end)])


@pytest.mark.parametrize("name", ["smoke", "lite", "full", "knowledge"])
def test_recall_is_never_asked_before_1000_steps(name):
    for config in expand(suite(name), layers("gated-conv swiglu"), [0]):
        rungs = Rungs().of(config)
        assert list(rungs) == sorted(set(rungs))
        if "recall" in config.task or config.task == "depo":
            assert not [step for step in rungs if step < 1000]


def test_rungs_are_three_and_each_three_times_the_one_before():
    def rungs(task, steps):
        return Rungs().of(planned(A, task, steps=steps))

    assert rungs(COPY, 3000) == (300, 900, 2700)
    assert rungs(COPY, 900) == (300,)
    assert rungs(COPY, 20_000) == (740, 2220, 6660)
    assert rungs(RECALL, 20_000) == (1000, 3000, 9000)
    assert rungs(RECALL, 600) == ()


def test_the_best_third_goes_on_and_the_others_are_given_up():
    study = Study()
    for candidate, accuracy in ((A, 0.5), (B, 0.6)):
        study.finish(candidate, COPY, accuracy, 1.0)
        study.finish(candidate, COMPRESS, accuracy, 1.0)
    for candidate, accuracy, goes_on in (
        (C, 0.4, False),  # the worst of three, of which one continues
        (D, 0.55, True),  # the second of four, of which two continue
        (E, 0.54, False),  # the third of five
    ):
        study.finish(candidate, COPY, accuracy, 1.0)
        run = planned(candidate, COMPRESS)
        assert study.pruner.should_prune(run, point(300, accuracy)) is not goes_on
        assert study.pruner.is_pruned(candidate) is not goes_on


def test_nothing_is_given_up_while_fewer_than_three_have_come_as_far():
    study = Study()
    study.finish(A, COPY, 0.9, 0.9)
    study.finish(A, COMPRESS, 0.9, 0.9)
    study.finish(B, COPY, 0.1, 0.1)
    assert not study.pruner.should_prune(planned(B, COMPRESS), point(300, 0.1))


def test_nothing_is_given_up_on_one_task_alone():
    study = Study()
    for candidate in (A, B, C):
        study.finish(candidate, COPY, 0.9, 0.9)
    assert not study.pruner.should_prune(planned(D, COPY), point(300, 0.0))


def test_the_mean_over_tasks_decides_and_not_the_last_one():
    study = Study()
    for candidate in (A, B, C):
        study.finish(candidate, COPY, 0.5, 0.5)
        study.finish(candidate, COMPRESS, 0.5, 0.5)
    study.finish(D, COPY, 1.0, 1.0)
    assert not study.pruner.should_prune(planned(D, COMPRESS), point(300, 0.1))  # 0.55 on average


def test_candidates_are_compared_at_the_same_step_and_not_by_what_others_reached_later():
    study = Study()
    for candidate in (A, B, C):
        study.finish(candidate, COPY, 0.2, 1.0)
        study.finish(candidate, COMPRESS, 0.2, 1.0)
    study.finish(D, COPY, 0.3, 0.3)
    assert not study.pruner.should_prune(planned(D, COMPRESS), point(300, 0.3))
    assert study.pruner.should_prune(planned(D, COMPRESS), point(2700, 0.3))


def test_only_candidates_with_the_same_runs_are_compared():
    study = Study()
    for candidate in (A, B, C):
        study.finish(candidate, COPY, 0.9, 0.9)  # none of them has begun on compression
    study.finish(D, COPY, 0.1, 0.1)
    assert not study.pruner.should_prune(planned(D, COMPRESS), point(300, 0.1))


def test_of_several_optimiser_points_the_best_counts():
    study = Study()
    for candidate in (A, B, C):
        for lr in (1e-3, 1e-4):
            study.end(planned(candidate, COPY, lr=lr), [point(300, 0.5)])
            study.end(planned(candidate, COMPRESS, lr=lr), [point(300, 0.5)])
    for task in (COPY, COMPRESS):
        study.end(planned(D, task), [point(300, 0.9)])
    assert not study.pruner.should_prune(planned(D, COPY, lr=1e-4), point(300, 0.0))


def test_a_run_that_ended_early_stands_at_later_rungs_with_what_it_reached():
    study = Study()
    for candidate in (A, B, C):
        study.end(planned(candidate, COPY), [point(200, 1.0)])
        study.end(planned(candidate, COMPRESS), [point(200, 1.0)])
    study.end(planned(D, COPY), [point(200, 1.0)])
    assert study.pruner.should_prune(planned(D, COMPRESS), point(900, 0.9))


def test_a_run_that_ended_early_stands_with_its_accuracy_on_the_rows_that_decide():
    study = Study()
    for candidate in (A, B, C):
        for task in (COPY, COMPRESS):
            study.end(planned(candidate, task, select="val"), [point(200, 0.2)], test=0.9)
    study.end(planned(D, COPY, select="val"), [point(200, 0.3)], test=0.3)
    assert not study.pruner.should_prune(planned(D, COMPRESS, select="val"), point(300, 0.3))


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_lost_run_counts_as_0_at_every_rung(status):
    study = Study()
    for candidate in (A, B, C):
        for task in (COPY, COMPRESS):
            study.end(planned(candidate, task), [point(2900, 0.9)], status)
    study.finish(D, COPY, 0.1, 0.1)
    assert not study.pruner.should_prune(planned(D, COMPRESS), point(2700, 0.1))


def test_other_runs_of_a_candidate_that_was_given_up_end_at_their_next_rung():
    study = Study()
    for candidate in (A, B, C):
        study.finish(candidate, COPY, 0.9, 0.9)
        study.finish(candidate, COMPRESS, 0.9, 0.9)
    study.finish(D, COPY, 0.1, 0.1)
    beside = planned(D, RECALL)
    assert study.pruner.should_prune(planned(D, COMPRESS), point(300, 0.1))
    assert study.pruner.should_prune(beside, point(1000, 1.0))


def test_a_pruner_rebuilt_from_the_records_decides_as_the_one_that_is_gone():
    study = Study()
    accuracies = itertools.cycle((0.5, 0.7, 0.2, 0.6, 0.9))
    for candidate, status in ((A, "done"), (B, "done"), (C, "pruned"), (D, "diverged")):
        study.finish(candidate, COPY, next(accuracies), next(accuracies))
        last = 900 if status == "pruned" else 3000
        curve = [point(300, next(accuracies)), point(last, next(accuracies))]
        study.end(planned(candidate, COMPRESS), curve, status)

    def answers(pruner):
        results = []
        for accuracy, step in itertools.product((0.1, 0.4, 0.5, 0.6, 0.8), (300, 900, 2700)):
            new = f"{E} {accuracy} {step}"
            for task in (COPY, COMPRESS):
                results.append(not pruner.should_prune(planned(new, task), point(step, accuracy)))
        return results

    assert set(answers(study.rebuilt())) == {True, False}
    assert answers(study.rebuilt()) == answers(study.pruner)
    assert study.rebuilt().is_pruned(C)
    assert not study.rebuilt().is_pruned(A)


def test_a_candidate_that_was_given_up_is_told_as_worse_than_one_that_went_through_the_rest():
    planning = Planning(definition.Study(candidates=(CONV,), suite="smoke", seeds=(0,)))
    whole = [each for each in runs() if each.candidate == CONV and each.seed == 0]
    assert planning.judge(whole).score == pytest.approx(0.89)
    easy = [*whole[:2], replace(whole[2], status="pruned")]  # the three that follow are spared
    assert planning.judge(easy).score == pytest.approx(0.89 / 2)
    half = whole[:3]  # without its missing runs, the score is that of the others
    assert planning.judge(half).score == pytest.approx(0.89)
