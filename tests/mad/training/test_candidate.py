"""One candidate, trained in this process: its configuration decides its numbers; it learns."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from mlxhog.errors import ConfigError
from mlxhog.mad.training.candidate import train
from mlxhog.mad.training.run_plan import make_run_plan
from mlxhog.models import lm
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.ops.kernels import choose
from mlxhog.optim import Muon
from tests.mad.training.small_runs import Recorder, numbers, small_run
from tests.tolerances import STEP_LOSSES_F32, assert_close

backends = pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])


def torch_losses(config):
    """The loss of every step of torch's AdamW and schedule, from our initial values and batches."""
    plan, recipe = make_run_plan(config), config.recipe
    params = {
        name: torch.tensor(value, requires_grad=True)
        for name, value in init_params(plan.model, config.seed).items()
    }
    spec, decay = param_spec(plan.model), recipe.weight_decay
    groups = [
        {"params": [one], "weight_decay": decay * (recipe.wd_all or spec[name].decay)}
        for name, one in params.items()
    ]
    betas = (0.9, recipe.optimizer.beta2)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=betas)
    epochs = plan.limit // plan.per_epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-6)
    batches, result, ops = plan.batches(), [], choose("torch", "eager", "cpu")
    for epoch in range(epochs):
        for ticket in range(batches.n_tickets):
            batch = batches.at(epoch, ticket)
            ids = (torch.tensor(part).long() for part in (batch.x, batch.y))
            loss = lm.mean_loss(plan.model, params, *ids, ops=ops)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            result.append(float(loss.detach()))
        if recipe.schedule != "constant":
            schedule.step()
    return np.array(result)


@backends
def test_the_same_run_gives_the_same_numbers_whatever_ran_before(backend):
    config = small_run(workers=backend)
    first = numbers(train(config))
    train(small_run(workers=backend, layers="swiglu gated-conv swiglu", seed=9, dim=32))
    assert numbers(train(config)) == first
    assert numbers(train(small_run(workers=backend, seed=4))) != first


@backends
@pytest.mark.parametrize(
    "recipe",
    [{}, {"schedule": "constant", "weight_decay": 0.3}, {"weight_decay": 0.3, "wd_all": True}],
    ids=["cosine", "constant and decay", "decay of everything"],
)
def test_a_run_is_that_of_torchs_adamw_stepped_by_epoch(backend, recipe):
    course = {"lr": 2e-2, "steps": None, "epochs": 4, "eval_every": 1, "stop_accuracy": 2}
    config = small_run(workers=backend, **course, **recipe)
    actual = np.array([point.loss for point in train(config).curve])  # of every step
    assert len(actual) == 24
    assert_close(actual, torch_losses(config), STEP_LOSSES_F32)


def test_the_optimizer_is_part_of_a_run_and_an_open_learning_rate_follows_from_the_width():
    for dim in (16, 32):
        config = small_run(optimizer="muon", lr=None, dim=dim)
        assert make_run_plan(config).config.top_lr == Muon().default_lr(dim)
    spelt = ("muon", "muon(nesterov=0.3)", "muon(weight_decay=0)", "adamw", "lion")
    assert len({small_run(optimizer=one).key() for one in spelt}) == len(spelt)
    short = small_run(optimizer="adamw", beta2=0.999, weight_decay=0.0)
    assert short.key() == small_run().key()
    with pytest.raises(ConfigError, match="adamw has no nesterov"):
        small_run(optimizer="adamw(nesterov=0.3)")


def test_an_epoch_deals_every_row_once_in_an_order_of_its_own():
    rows = make_run_plan(small_run(batch_size=20, labels="scored")).task_rows
    tickets = range(rows.n_tickets)
    epochs = [np.concatenate([rows.at(n, ticket).x for ticket in tickets]) for n in (0, 1)]
    assert (rows.n_tickets, len(rows.at(0, 4).x)) == (5, 16)
    for epoch in epochs:
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, rows.dataset().train_x))
    assert not np.array_equal(*epochs)
    assert (rows.dataset().train_y < 0).any()  # where no answer can be known


def test_a_run_beats_once_a_step_and_tells_every_evaluation_and_a_rung_may_prune_it():
    callbacks = Recorder()
    result = train(small_run(), callbacks=callbacks)
    assert result.status == "done"
    assert callbacks.beats >= result.steps == 12
    assert tuple(callbacks.points) == result.curve
    assert [point.step for point in result.curve] == [6, 12]
    assert (result.curve[-1].acc_token, result.curve[-1].loss) == (result.acc_token, result.loss)
    pruned = train(small_run(), callbacks=Recorder(prune=True), rungs=(6,))
    assert (pruned.status, pruned.steps) == ("pruned", 6)
    assert pruned.acc_token == result.curve[0].acc_token


@pytest.mark.parametrize(
    ("beat", "steps", "evaluations"),
    [(4, 4, [4]), (12 + 2, 12, [6, 12])],  # within a step; within the last scoring
)
def test_an_interrupted_run_is_evaluated_where_it_stands(beat, steps, evaluations):
    result = train(small_run(), callbacks=Recorder(interrupt_at=beat))
    assert (result.status, result.steps) == ("interrupted", steps)
    assert [point.step for point in result.curve] == evaluations
    assert result.acc_token == result.curve[-1].acc_token


def test_a_second_interrupt_leaves_at_once(monkeypatch):
    monkeypatch.setattr(Recorder, "beat", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(small_run(), callbacks=Recorder())


def test_validation_rows_decide_where_asked_for_and_both_are_told():
    settings = {"val_rows": 16}
    by_test = train(small_run(settings=settings))
    by_val = train(small_run(settings=settings, select="val"))
    assert by_test.val_token == by_val.val_token is not None
    assert by_test.curve[-1].acc_token == by_test.acc_token
    assert by_val.curve[-1].acc_token == by_val.val_token
    assert small_run(select="val").settings["val_rows"] == 32  # as many as test rows


def test_what_training_rows_never_show_bounds_the_best_achievable_accuracy():
    settings = {"vocab": 64, "train_rows": 1}
    result = train(small_run(task="memorization", settings=settings, steps=1))
    assert 0 < result.best_achievable < 0.5
    assert train(small_run(steps=1)).best_achievable == 1.0


def test_runs_at_once_share_the_memory_of_a_gpu():
    alone, beside = make_run_plan(small_run()), make_run_plan(small_run(), parallel=3)
    assert (alone.gpu_share.workers, beside.gpu_share.workers) == (1, 3)


LONGER = {"train_rows": 6400, "test_rows": 16, "test_length": 256}
PARITY = {"group": "parity", "vocab": 2, **LONGER}
SLSTM = "slstm(heads=1,bias_init=powerlaw,recurrent_init=uniform) swiglu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "backend", "solves", "task", "settings"),
    [
        (SLSTM, "torch:cpu", True, "state-tracking", PARITY),
        ("mlstm swiglu", "mlx:cpu", False, "state-tracking", PARITY),
        (SLSTM, "mlx:cpu", True, "dyck", {"kinds": 2, "depth": 2, "vocab": 5, **LONGER}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_small_candidates_learn_the_tasks_that_they_should_at_16_times_the_length(
    layers, backend, solves, task, settings
):
    config = small_run(
        layers=layers, workers=backend, task=task, settings=settings, clip=1.0, lr=2e-2, steps=300,
        schedule="constant", eval_every=50, batch_size=32, beta2=0.95, stop_accuracy=1.0,
    )  # fmt: skip
    result = train(config)
    assert [end for end, _ in result.by_length] == [16, 32, 64, 128, 256]
    assert all((accuracy == 1.0) == solves for _, accuracy in result.by_length)
    assert (result.acc_token == 1.0) == solves
