"""Learning rates over a run."""

from dataclasses import replace

import numpy as np
import pytest

from mlxhog import optim
from mlxhog.config.budget import Budget
from mlxhog.optim import schedules
from tests.pairs import each_of

EPOCHS = schedules.Epochs(10)
SCHEDULES = {
    "constant": schedules.Constant(warmup=0.1),
    "cosine": schedules.Cosine(warmup=0.1, min_lr_ratio=0.25),
    "wsd": schedules.WSD(warmup=0.1, min_lr_ratio=0.25),
    "backoff": schedules.Backoff(steps=100),
    "inverse": schedules.Inverse(steps=100),
}


def at(name, progress, update=0, step_share=0.0):
    return SCHEDULES[name].of_run(2.0, EPOCHS, step_share)(progress, update)


@each_of("name", ["constant", "cosine", "wsd"])
def test_warmup_rises_on_a_line_to_lr_and_its_first_of_n_steps_has_an_nth(name):
    results = [at(name, progress) for progress in (0.0, 0.025, 0.05, 0.1)]
    assert results == pytest.approx([0.0, 0.5, 1.0, 2.0])
    results = [at(name, k / 40, step_share=1 / 40) for k in range(4)]  # a warmup of 4 steps
    assert results == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert at(name, 0.0, step_share=1.0) == 2.0  # the only step of a run


def test_a_step_is_the_share_of_the_run_that_steps_or_tokens_limit():
    for limits in ({"steps": 16, "seconds": 60.0}, {"steps": 12, "steps_before": 4},
                   {"tokens": 1600}):  # fmt: skip
        assert Budget(**limits).step_share(lambda tokens: tokens // 100) == 1 / 16
    assert Budget(seconds=60.0).step_share(lambda tokens: tokens // 100) == 0.0


@each_of(
    ("name", "progress", "update", "size"),
    [
        ("constant", 1.0, 0, 2.0), ("cosine", 1.0, 0, 0.5), ("cosine", 0.55, 0, 1.25),
        ("wsd", 0.8, 0, 2.0), ("wsd", 0.9, 0, 1.25), ("inverse", 0.0, 300, 0.5),
    ],
)  # fmt: skip
def test_a_schedule_has_its_form_after_the_warmup(name, progress, update, size):
    assert at(name, progress, update) == pytest.approx(size)


@each_of(
    ("rule", "optimizer", "factor"),
    [
        ("auto", "adamw", 1.0), ("auto", "lion", 0.5), ("none", "lion", 1.0),
        ("sqrt", "adamw", 0.5), ("linear", "adamw", 0.25),
    ],
)  # fmt: skip
def test_four_workers_take_a_part_of_lr_by_the_rule(rule, optimizer, factor):
    chosen = optim.by_name(optimizer)
    assert (chosen.workers_factor(rule, 4), chosen.workers_factor(rule, 1)) == (factor, 1.0)


@each_of(("steps", "beta"), [(100, 0.37), (1000, 0.37), (7, 0.5), (3, 0.9)])
def test_backoff_stages_grow_by_one_over_beta_and_rates_shrink_by_beta(steps, beta):
    schedule = schedules.Backoff(steps=steps, beta=beta)
    sizes = np.array([schedule.at(1.0, 0.0, update) for update in range(32_000)])
    length = [np.count_nonzero(np.isclose(sizes, beta**stage)) for stage in range(4)]
    assert length[0] == steps
    assert all(abs(length[k] - steps / beta**k) <= 1 for k in range(4))
    assert (np.diff(sizes) <= 0).all()


def test_epochs_count_as_updates_do_and_are_what_has_been_handed_out():
    for name in ("backoff", "inverse"):
        by_epoch = replace(SCHEDULES[name], steps=1000, epochs=3).of_run(2.0, EPOCHS, 0.0)
        by_update = replace(SCHEDULES[name], steps=3).of_run(2.0, EPOCHS, 0.0)
        for update in range(400):  # the learning rate stays within one epoch
            assert by_epoch(0.0, update) == by_update(0.0, update // EPOCHS.n)
    epochs = schedules.Epochs(10, per_update=4.0, version=20, batches=35)
    assert [epochs.of(update) for update in (20, 21, 22, 24)] == [3, 3, 4, 5]
