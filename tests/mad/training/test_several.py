"""Several workers train one candidate through one arena, as they train a language model."""

import tempfile
from dataclasses import dataclass

import numpy as np
import pytest

from mlxhog import backends
from mlxhog.base.workers import WorkerSpec
from mlxhog.errors import ConfigError, WorkerFailed
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.evaluation import score
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.strategies import SSP, Hogwild, Sync
from mlxhog.training.plan import strategy_rule as choose_strategy
from tests.mad.training.small_runs import Recorder, small_run
from tests.soak.killer import Killer

TWO = "mlx:cpu*2"  # it starts faster than torch
LONG = {"workers": TWO, "steps": 100_000, "eval_every": 20, "stop_accuracy": 2}


def train_two(config, kills=0, **how):
    """A record, which has the scores of the last parameters, and the messages."""
    last, messages = [], []
    how |= {"on_end": lambda arena: last.append(arena.params.copy()), "tell": messages.append}
    result = Killer(kills).train(config, run=train, **how)
    if last:
        plan = make_run_plan(config)
        # That of the run: another one may round two equal scores of tokens the other way.
        backend = backends.create("mlx:cpu", threads=1, kernels="native")
        backend.bind(plan.model, plan.layout)
        backend.copy_in(last[0])
        scores = score(backend, plan.task_rows.dataset(), plan.model, beat=lambda: None)
        assert {name: getattr(result, name) for name in scores} == scores
        assert result.curve[-1].step == result.steps
    return result, messages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "worker_options"),
    [
        ("mlx:cpu,torch:cpu", {"predict": "none"}),
        (TWO, {"strategy": "round_robin"}),
        (TWO, {"strategy": "local_sgd", "average_every": 3}),
        (TWO, {"strategy": "ssp", "slack": 1, "staleness_lr": "linear"}),
        ("mlx:cpu*3", {"strategy": "sync", "backup_workers": 1}),
    ],
)
def test_workers_take_every_step_of_the_budget_and_the_last_parameters_are_scored(
    workers, worker_options
):
    config = small_run(workers=workers, lr=2e-2, steps=60, eval_every=20)
    result, _ = train_two(config, worker_options=worker_options)
    assert (result.status, result.steps) == ("done", 60)
    assert result.curve[-1].loss < 0.9 * np.log(8)  # at its begin


def test_workers_without_a_strategy_have_the_one_of_mlxhog_train_for_their_devices():
    alike = make_run_plan(small_run(workers=TWO)).config.strategy
    assert isinstance(alike, Sync)
    assert alike.shares == "speed"
    unlike = (WorkerSpec("mlx:gpu", 1), WorkerSpec("torch:cpu", 1))
    assert choose_strategy.by_likelihood(unlike)[0] == Hogwild()
    by_number = make_run_plan(small_run(workers=TWO), {"slack": 1})
    assert isinstance(by_number.config.strategy, SSP)
    assert by_number.per_epoch == 6  # a step has one batch, that of a round has more


def test_a_strategy_of_a_user_is_not_replaced_where_one_worker_trains():
    @dataclass(frozen=True, kw_only=True)
    class Own(Hogwild):
        name = "own"

    assert type(make_run_plan(small_run(workers=TWO), {"strategy": Own()}).strategy) is Own
    with pytest.raises(ConfigError, match="your own would not be used; give it several"):
        make_run_plan(small_run(workers="mlx:cpu"), {"strategy": Own()})


def test_simulated_workers_are_refused_whatever_the_workers():
    for workers in (TWO, "mlx:cpu"):
        with pytest.raises(ConfigError, match="strategy sim is for mlxhog train"):
            make_run_plan(small_run(workers=workers), {"strategy": "sim"})


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_no_step_is_missing():
    result, messages = train_two(small_run(**LONG | {"steps": 200}), kills=1)
    assert any("died (signal SIGKILL, perhaps for" in one for one in messages)
    assert (result.status, result.steps) == ("done", 200)


def test_a_worker_that_dies_too_often_ends_the_run_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # its message names a log there
    with pytest.raises(WorkerFailed, match="died 1 time in"):
        train_two(small_run(**LONG), kills=1, worker_options={"restarts": 0})


@pytest.mark.parametrize(
    ("status", "recipe", "how"),
    [
        ("done", {"stop_accuracy": 0.01}, {}),
        ("pruned", {}, {"callbacks": Recorder(prune=True), "rungs": (30,)}),
        ("diverged", {"lr": 1e30}, {}),
    ],
)
def test_workers_stop_where_the_run_ends_and_their_parameters_are_scored(status, recipe, how):
    result, _ = train_two(small_run(**LONG | recipe), **how)
    assert result.status == status
    assert result.steps < 100_000
    assert (result.acc_token == result.acc_macro == 0) or status != "diverged"
