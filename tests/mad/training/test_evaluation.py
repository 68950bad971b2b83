"""The steps of evaluations, and the end of a run."""

from mlxhog.mad.training.evaluation import CandidateEvaluations
from tests.mad.training.small_runs import Recorder, small_run
from tests.pairs import each_of

KINDS = ("acc_token", "acc_macro", "val_token", "val_macro")


def full(accuracy):
    """Accuracies of rows of every kind, each half the one before."""
    halves = {name: accuracy / 2**k for k, name in enumerate(KINDS)}
    return {**halves, "by_length": ((40, 1.0), (64, accuracy))}


def evaluations(*accuracies, callbacks=None, rungs=(), **recipe):
    """A course of at most 100 steps, evaluated every 10, with one evaluation per accuracy."""
    config = small_run(**{"eval_every": 10, **recipe})
    evaluator = CandidateEvaluations(
        config, callbacks or Recorder(), rungs, limit=100, per_epoch=10
    )
    step = 0
    for accuracy in accuracies:
        step = evaluator.next_evaluation(step)
        evaluator.add(step, 1.0, 2.0, full(accuracy))
    return evaluator


def test_evaluations_come_at_their_interval_at_every_rung_and_at_the_end():
    evaluator, due = evaluations(rungs=(15, 30)), [0]
    while due[-1] < 40:
        due.append(evaluator.next_evaluation(due[-1]))
    assert due == [0, 10, 15, 20, 30, 40]
    assert evaluator.next_evaluation(95) == 100
    assert evaluations(eval_every=64).next_evaluation(64) == 100


@each_of(
    ("accuracies", "recipe", "status"),
    [
        ((0.5, 0.9), {"stop_accuracy": 0.95}, None),
        ((0.5, 0.95), {"stop_accuracy": 0.95}, "done"),
        ((1.0,), {"stop_accuracy": 1.1}, None),
        ((0.1, 0.3, 0.2, 0.2), {"patience": 3}, None),
        ((0.1, 0.3, 0.2, 0.2, 0.3), {"patience": 3}, "done"),
        ((0.1, 0.3, 0.2, 0.2, 0.4, 0.1), {"patience": 3}, None),
    ],
)
def test_a_run_ends_at_its_accuracy_or_after_evaluations_without_a_better_one(
    accuracies, recipe, status
):
    assert evaluations(*accuracies, **recipe).status == status


def test_only_rungs_ask_whether_to_go_on_also_one_that_workers_ran_past_and_a_no_prunes():
    callbacks = Recorder(prune=True)
    assert evaluations(0.1, callbacks=callbacks, rungs=(20,)).status is None
    assert callbacks.asked == []
    assert evaluations(0.1, 0.1, callbacks=callbacks, rungs=(20,)).status == "pruned"
    late = evaluations(callbacks=callbacks, rungs=(20,))
    late.add(23, 1.0, 2.0, full(0.1))
    assert (late.status, callbacks.asked) == ("pruned", [20, 23])


@each_of(("stop", "step"), [(0.999, 20), (0.95, 10), (2.0, 20)])
def test_a_task_is_solved_at_99_percent_or_at_a_lower_stop_accuracy(stop, step):
    run = evaluations(0.95, 0.99, 0.5, stop_accuracy=stop)
    assert run.record("done", 30, 1.0).solved == step
    diverged = evaluations(0.9, stop_accuracy=stop).record("diverged", 10, 1.0)
    assert (diverged.solved, diverged.curve[0].acc_token) == (None, 0.9)
    assert [getattr(diverged, kind) for kind in KINDS] == [0, 0, 0, 0]
    assert diverged.by_length == ((40, 0), (64, 0))
