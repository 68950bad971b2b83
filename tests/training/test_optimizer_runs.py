"""Runs with Lion, Adan, APOLLO and SOAP: their state, their step sizes, other workers."""

import math
from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.checkpoint import checkpoint
from mlxhog.errors import CheckpointError
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.training.checkpoints import restore
from mlxhog.training.plan import make_plan
from tests.training.small import identical, parameters, small_config

COMMON = {"lr": 1e-3, "schedule": "constant", "warmup": 0}
REFRESHED = {
    "apollo": {"projection_every": 7},
    "soap": {"precondition_every": 3},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "strategy"), [("soap", "sync"), ("apollo", "round_robin")])
def test_several_workers_train_with_it(tmp_path, optimizer, strategy):
    common = {
        **COMMON,
        **REFRESHED.get(optimizer, {}),
        "optimizer": optimizer,
        "strategy": strategy,
    }
    result = train(small_config(tmp_path, workers="mlx:cpu*2", steps=40, **common))
    assert (result.status, result.steps) == ("done", 40)
    assert all(np.isfinite(value).all() for value in parameters(result).values())


@pytest.mark.slow
def test_apollo_keeps_projected_moments_and_a_norm_of_hidden_matrices(tmp_path):
    config = small_config(tmp_path, optimizer="apollo", projection_rank=3, **COMMON)
    result = train(config)
    saved = checkpoint.load(Path(str(result.checkpoint)))
    hidden = families.hidden_matrices(load_architecture(str(tmp_path / "small.yaml")))
    assert len(hidden) == 8
    for name, value in saved.params.items():
        shape = value.shape
        if name in hidden:
            shape = (shape[0], 3) if shape[0] >= shape[1] else (3, shape[1])
            assert saved.optimizer[f"norm.1/{name}"].shape == (1,)
            assert saved.optimizer[f"norm.1/{name}"] > 0
        for kind in "mv":
            moment = saved.optimizer[f"{kind}.1/{name}"]
            assert moment.shape == shape
            assert moment.any()
    assert sum(key.startswith("norm") for key in saved.optimizer) == len(hidden)


def test_a_small_state_makes_a_small_arena(tmp_path):
    common = {"model": "tiny", "workers": "2", "max_workers": 2}
    adamw, mini = (
        make_plan(small_config(tmp_path, optimizer=optimizer, **common))
        for optimizer in ("adamw", "apollo-mini")
    )
    hidden = families.hidden_matrices(adamw.model)
    sizes = {name: slot.size for name, slot in adamw.layout.slots.items()}
    saved = 2 * 2 * 4 * sum(sizes[name] for name in hidden)  # workers, moments, bytes
    assert adamw.arena_bytes - mini.arena_bytes > 0.95 * saved


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["apollo", "soap"])
def test_other_workers_begin_with_the_state_of_one_where_bases_have_no_average(tmp_path, optimizer):
    common = {**COMMON, **REFRESHED[optimizer], "strategy": "hogwild", "optimizer": optimizer}
    first = train(small_config(tmp_path, workers="mlx:cpu*2", steps=12, **common))
    saved = checkpoint.load(Path(str(first.checkpoint)))
    steps = {int(slot): n for slot, n in saved.state["opt_steps"].items()}
    source = max(steps, key=lambda slot: steps[slot])
    config = small_config(tmp_path, workers="mlx:cpu*3", steps=12, resume=first.run, **common)
    planned = make_plan(config)
    with Arena.create(planned.layout) as arena:
        start = restore(planned, arena, Ledger(arena))
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
def test_the_half_life_of_the_second_moment_is_in_tokens_of_a_step(tmp_path):
    common = {**COMMON, "strategy": "serial", "steps": 6, "batch_size": 2}  # 64 tokens a step
    by_tokens = train(small_config(tmp_path, beta2_half_life=640, **common))
    directly = train(small_config(tmp_path, beta2=2.0**-0.1, **common))
    assert identical(parameters(by_tokens), parameters(directly))


@pytest.mark.parametrize("optimizer", ["lion", "soap"])
def test_a_model_without_hidden_matrices_trains_too(tmp_path, optimizer):
    model = tmp_path / "model.yaml"
    model.write_text(
        "model_type: mad\nvocab_size: 320\nhidden_size: 32\nlayers: [slstm-v1]\nbos_token_id: 256\n"
    )
    config = small_config(tmp_path, model=str(model), optimizer=optimizer, steps=5)
    notes = [note for note in make_plan(config).notes if "no hidden matrix" in note]
    assert bool(notes) == (optimizer == "soap")
    assert train(config).status == "done"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lion", "soap"])
def test_metal_kernels_add_the_same_steps_to_a_run(tmp_path, optimizer):
    common = {
        **COMMON,
        **REFRESHED.get(optimizer, {}),
        "strategy": "serial",
        "steps": 6,
        "optimizer": optimizer,
    }
    by_cpu, by_metal = (
        parameters(train(small_config(tmp_path, gpu_write=writer, **common)))
        for writer in ("cpu", "metal-emulated")
    )
    assert identical(by_cpu, by_metal)
