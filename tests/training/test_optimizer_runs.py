"""Runs with Muon, Lion, APOLLO and SOAP: their state, their step sizes, other workers."""

import numpy as np
import pytest

from mlxhog import train
from mlxhog.errors import CheckpointError
from tests.training.small import checkpoint_of, filled, small_config

MUON = {"optimizer": "muon", "lr": 3e-3, "schedule": "constant", "warmup": 0}
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
    with filled(config) as (planned, arena, messages):
        assert any(f"{optimizer} keeps them in a basis" in message for message in messages)
        for kind in planned.optimizer.state_segments:
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
