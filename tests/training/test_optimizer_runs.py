"""Runs with Muon, Lion, APOLLO and SOAP: their state, their step sizes, other workers."""

import math

import numpy as np
import pytest

from mlxhog import train
from mlxhog.errors import CheckpointError
from mlxhog.optim import GROUPS, AdamW
from mlxhog.training.plan import make_plan
from tests.training.small import checkpoint_of, filled, identical, parameters, small_config

MUON = {"optimizer": "muon", "lr": 3e-3, "schedule": "constant", "warmup": 0}
EQUAL = dict.fromkeys(GROUPS.values(), 1.0)
"""One step size for all groups, as for every vocabulary of bytes."""
WITHOUT_HIDDEN = """
model_type: mad
vocab_size: 320
hidden_size: 32
layers: [slstm-v1]
bos_token_id: 256
"""
COMMON = {"lr": 1e-3, "schedule": "constant", "warmup": 0}
REFRESHED = {
    "apollo": {"projection_every": 7},
    "soap": {"precondition_every": 3},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["apollo", "soap"])
def test_other_workers_begin_with_the_state_of_one_where_bases_have_no_average(tmp_path, optimizer):
    common = {**COMMON, **REFRESHED[optimizer], "strategy": "hogwild", "optimizer": optimizer}
    first = train(small_config(tmp_path, workers="mlx:cpu*2", steps=12, **common))
    saved = checkpoint_of(first)
    steps = {int(slot): n for slot, n in saved.state["opt_steps"].items()}
    source = max(steps, key=lambda slot: steps[slot])
    config = small_config(tmp_path, workers="mlx:cpu*3", steps=12, resume=first.run, **common)
    with filled(config) as (planned, arena, start):
        assert any(f"{optimizer} keeps them in a basis" in message for message in start.messages)
        for kind in planned.private_state:
            for slot in (1, 2, 3):
                flat = arena.segment(f"{kind}.{slot}")
                for name, part in arena.layout.parts(f"{kind}.{slot}").items():
                    value = saved.optimizer[f"{kind}.{source}/{name}"]
                    span = flat[part.offset : part.offset + part.size]
                    assert np.array_equal(span, value.ravel())
                assert arena.workers.entry(slot).opt_step == steps[source]


def test_state_of_another_shape_is_refused_by_name(tmp_path):
    common = {**COMMON, "strategy": "serial", "optimizer": "apollo"}
    first = train(small_config(tmp_path, steps=4, projection_rank=4, **common))
    again = small_config(tmp_path, steps=4, projection_rank=2, resume=first.run, **common)
    with pytest.raises(CheckpointError, match="optimizer state m.1/.* has shape .* this run keeps"):
        train(again)


def test_two_lock_free_workers_of_lion_take_a_smaller_step_and_the_plan_says_so(tmp_path):
    def plan_of(**options):
        plan = make_plan(small_config(tmp_path, lr=1e-3, **options))
        return plan.schedule(0.0)(0.03, 0), [note for note in plan.notes if "lr_workers" in note]

    step, (note,) = plan_of(optimizer="lion", workers="2")
    assert step == pytest.approx(1e-3 / math.sqrt(2))
    assert "lr 0.000707: 0.707 of 0.001" in note
    for options in (
        {"optimizer": "lion", "workers": "2", "strategy": "sync"},
        {"optimizer": "lion", "workers": "1"},
        {"optimizer": "adamw", "workers": "2"},
    ):
        assert plan_of(**options) == (pytest.approx(1e-3), [])


@pytest.mark.slow
def test_private_moments_become_those_of_all_and_the_other_way_round(tmp_path):
    common = {**MUON, "workers": "mlx:cpu*2", "steps": 20}
    private = train(small_config(tmp_path, moments="private", **common))
    shared = train(small_config(tmp_path, moments="shared", resume=private.run, **common))
    back = train(small_config(tmp_path, moments="private", resume=shared.run, **common))
    assert (back.status, back.steps) == ("done", 60)
    runs = [checkpoint_of(result) for result in (private, shared, back)]
    assert [any(key.startswith("m.1/") for key in run.optimizer) for run in runs] == [
        True, False, True,
    ]  # fmt: skip
    assert 0 < runs[1].state["moments_since"] < 20  # of two workers each had taken some


@pytest.mark.slow
def test_the_moments_of_another_optimizer_are_refused_or_dropped_on_request(tmp_path):
    first = train(small_config(tmp_path, **MUON))
    adamw = {"resume": first.run, "steps": 10}
    with pytest.raises(CheckpointError, match=r"optimizer muon, this is adamw.*--reset-optimizer"):
        train(small_config(tmp_path, **adamw))
    second = train(small_config(tmp_path, reset_optimizer=True, **adamw))
    assert (second.status, second.steps) == ("done", 30)
    saved = checkpoint_of(second)
    assert saved.state["optimizer"] == "adamw"
    assert saved.state["opt_steps"] == {"1": 10}


@pytest.mark.slow
def test_a_model_without_hidden_matrices_trains_with_adamw_and_the_plan_says_so(tmp_path):
    model = tmp_path / "model.yaml"
    model.write_text(WITHOUT_HIDDEN)
    common = {"model": str(model), "strategy": "serial", "steps": 10, "lr": None}
    muon = small_config(tmp_path, optimizer="muon", **common)
    (note,) = [note for note in make_plan(muon).notes if "muon" in note]
    assert "no hidden matrix (both sides at least 16, half its width)" in note
    assert "adamw moves every parameter" in note
    planned = make_plan(muon).config
    assert (planned.optimizer, planned.top_lr) == (AdamW(beta1=0.9, **EQUAL), 1e-3)
    by_adamw = train(small_config(tmp_path, **common))
    by_muon = train(muon)
    assert identical(parameters(by_muon), parameters(by_adamw))
    resumed = small_config(tmp_path, **{**common, "optimizer": "muon", "resume": by_muon.run})
    assert make_plan(resumed).config.optimizer == AdamW(
        beta1=0.9, **EQUAL
    )  # the stored name of its optimizer is accepted
