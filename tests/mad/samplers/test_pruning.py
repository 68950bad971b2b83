"""Asynchronous halving: what it compares at a rung, and that records alone decide."""

import itertools
from dataclasses import replace

import pytest

from mlxhog.config.plugins import Plugin
from mlxhog.mad.options import Recipe
from mlxhog.mad.run import EvalPoint, RunConfig
from mlxhog.mad.samplers.pruning import Pruner
from mlxhog.models.mad.sequence import parse
from tests.mad.report.sample import CONV, RECORD, STUDY, runs
from tests.pairs import each_of

COPY, COMPRESS, RECALL = "selective-copying", "compression", "in-context-recall"
VAL = {"select": "val"}


def planned(candidate, task, *, lr=1e-3, steps=3000, select="test"):
    return RunConfig(
        task=task, settings={"train_rows": 640}, layers=parse("gated-conv"), dim=8, seed=0,
        recipe=Recipe(lr=lr, steps=steps, batch_size=64, select=select),
        candidate=candidate, label="baseline",
        plugins=(Plugin("", candidate),),  # so that each candidate has keys of its own
    )  # fmt: skip


def point(step, accuracy):
    return EvalPoint(step=step, seconds=1.0, loss=1.0, acc_token=0.0, acc_macro=accuracy)


class Course:
    """Runs that end, and a pruner that takes their results."""

    def __init__(self, *ends):
        self.curves, self.records = {}, []
        self.pruner = Pruner(self.curves.__getitem__)
        for names, tasks, curve, how in ends:
            for name, task in itertools.product(names, tasks):
                self.end(name, task, curve, **how)

    def end(self, candidate, task, curve, *, status="done", test=None, **recipe):
        run, (steps, last) = planned(candidate, task, **recipe), curve[-1]
        self.curves[run.key()] = [point(*one) for one in curve]
        accuracies = {"acc_macro": last} if test is None else {"acc_macro": test, "val_macro": last}
        named = {"key": run.key(), "candidate": candidate, "config": run.to_dict()}
        record = replace(RECORD, **named, status=status, steps=steps, **accuracies)
        self.records.append((run, record))
        self.pruner.ended(run, record)


BOTH = (COPY, COMPRESS)


def ends(names, at_300, end, tasks=BOTH):
    """Runs of candidates with two evaluations."""
    return names, tasks, [(300, at_300), (3000, end)], {}


def stop(names, step, accuracy, tasks=BOTH, **how):
    """Runs of candidates that end with their one evaluation."""
    return names, tasks, [(step, accuracy)], how


@each_of(
    ("task", "steps", "rungs"),
    [
        (COPY, 3000, (300, 900, 2700)),
        (COPY, 900, (300,)),
        (COPY, 20_000, (740, 2220, 6660)),
        (RECALL, 20_000, (1000, 3000, 9000)),
        (RECALL, 600, ()),
        ("depo", 900, ()),
    ],
)
def test_rungs_are_three_and_each_three_times_the_one_before(task, steps, rungs):
    assert Pruner(list).rungs(planned("A", task, steps=steps)) == rungs


def test_the_best_third_goes_on_and_the_others_are_given_up():
    course = Course(ends("A", 0.5, 1.0), ends("B", 0.6, 1.0))
    for candidate, accuracy, goes_on in (
        ("C", 0.4, False),  # the worst of three, of which one continues
        ("D", 0.55, True),  # the second of four, of which two continue
        ("E", 0.54, False),  # the third of five
    ):
        course.end(candidate, COPY, [(300, accuracy), (3000, 1.0)])
        run = planned(candidate, COMPRESS)
        assert course.pruner.should_prune(run, point(300, accuracy)) is not goes_on
        assert course.pruner.is_pruned(candidate) is not goes_on


BETTER = ends("ABC", 0.9, 0.9)
SOON, LATE = ends("ABC", 0.2, 1.0), ends("D", 0.3, 0.3, [COPY])
WORSE = ends("D", 0.1, 0.1, [COPY])


@each_of(
    ("before", "task", "at", "how", "prunes"),
    [
        # fewer than three candidates have come as far, or one task alone is known
        ([ends("A", 0.9, 0.9), WORSE], COMPRESS, (300, 0.1), {}, False),
        ([ends("ABC", 0.9, 0.9, [COPY])], COPY, (300, 0.0), {}, False),
        # the mean over tasks decides: 0.55 here
        ([ends("ABC", 0.5, 0.5), ends("D", 1.0, 1.0, [COPY])], COMPRESS, (300, 0.1), {}, False),
        # all are compared at the same step, not by what others reached later
        ([SOON, LATE], COMPRESS, (300, 0.3), {}, False),
        ([SOON, LATE], COMPRESS, (2700, 0.3), {}, True),
        # only candidates with the same runs are compared
        ([ends("ABC", 0.9, 0.9, [COPY]), WORSE], COMPRESS, (300, 0.1), {}, False),
        # of several optimizer points the best counts
        ([stop("ABC", 300, 0.5), stop("ABC", 300, 0.5, lr=1e-4), stop("D", 300, 0.9)], COPY,
         (300, 0.0), {"lr": 1e-4}, False),
        # a run that ended early stands at later rungs with what it reached, on the deciding rows
        ([stop("ABC", 200, 1.0), stop("D", 200, 1.0, [COPY])], COMPRESS, (900, 0.9), {}, True),
        ([stop("ABC", 200, 0.2, test=0.9, **VAL), stop("D", 200, 0.3, [COPY], test=0.3, **VAL)],
         COMPRESS, (300, 0.3), VAL, False),
        # a lost run counts as 0 at every rung
        *(([stop("ABC", 2900, 0.9, status=lost), WORSE], COMPRESS, (2700, 0.1), {}, False)
          for lost in ("diverged", "failed")),
        # other runs of a candidate that was given up end at their next rung
        ([BETTER, WORSE], COMPRESS, (300, 0.1), {}, True),
    ],
)  # fmt: skip
def test_a_run_is_ended_if_its_candidate_is_not_among_the_best_third(before, task, at, how, prunes):
    pruner = Course(*before).pruner
    assert pruner.should_prune(planned("D", task, **how), point(*at)) == prunes
    assert not prunes or pruner.should_prune(planned("D", RECALL), point(1000, 1.0))


def test_a_pruner_rebuilt_from_the_records_decides_as_the_one_that_is_gone():
    course, accuracies = Course(), itertools.cycle((0.5, 0.7, 0.2, 0.6, 0.9))
    for candidate, status in (("A", "done"), ("B", "done"), ("C", "pruned"), ("D", "diverged")):
        course.end(candidate, COPY, [(300, next(accuracies)), (3000, next(accuracies))])
        last = 900 if status == "pruned" else 3000
        curve = [(300, next(accuracies)), (last, next(accuracies))]
        course.end(candidate, COMPRESS, curve, status=status)

    def answers(pruner):
        return [
            pruner.should_prune(planned(f"E {accuracy} {step}", task), point(step, accuracy))
            for accuracy, step in itertools.product((0.1, 0.4, 0.5, 0.6, 0.8), (300, 900, 2700))
            for task in BOTH
        ]

    rebuilt = Pruner(course.curves.__getitem__)
    for run, record in course.records:
        rebuilt.ended(run, record)
    assert [rebuilt.is_pruned(name) for name in "AC"] == [False, True]
    assert set(expected := answers(course.pruner)) == {True, False}
    assert answers(rebuilt) == expected


def test_a_candidate_that_was_given_up_is_told_as_worse_than_one_that_went_through_the_rest():
    study = replace(STUDY, candidates=(CONV,), seeds=(0,))
    complete = [each for each in runs() if each.candidate == CONV and each.seed == 0]
    easy = [*complete[:2], replace(complete[2], status="pruned")]  # the others are spared
    half = complete[:3]  # without its missing runs, the score is that of the others
    for records, score in ((complete, 0.89), (easy, 0.89 / 2), (half, 0.89)):
        assert study.score_of(records).selection_score == pytest.approx(score)
