"""Runs with Muon: either backend, one worker or several, saved and resumed like AdamW's."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.checkpoint import checkpoint
from mlxhog.config.optimizer import GROUPS
from mlxhog.config.optimizers import AdamW, Muon
from mlxhog.errors import CheckpointError
from mlxhog.models import families
from mlxhog.models.registry import load_architecture
from mlxhog.strategies import look_ahead
from mlxhog.training.checkpoints import restore
from mlxhog.training.plan import make_plan
from tests.training.small import identical, largest_difference, parameters, small_config

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


@pytest.mark.slow
def test_hidden_matrices_keep_a_mean_and_the_rest_both_moments(tmp_path):
    result = train(small_config(tmp_path, moments="private", **MUON))
    saved = checkpoint.load(Path(str(result.checkpoint)))
    hidden = families.hidden_matrices(load_architecture(str(tmp_path / "small.yaml")))
    assert len(hidden) == 8
    for name in saved.params:
        assert saved.optimizer[f"m.1/{name}"].any()
        assert saved.optimizer[f"v.1/{name}"].any() == (name not in hidden)


@pytest.mark.slow
def test_both_backends_take_the_same_steps(tmp_path):
    """As far as their gradients agree: float32 rounding, which a polar factor enlarges.

    No rule depends on the backend of the gradient, so one optimizer suffices.
    """
    common = {**MUON, "strategy": "serial", "steps": 5}
    by_torch, by_mlx = (
        parameters(train(small_config(tmp_path, workers=backend, **common)))
        for backend in ("torch:cpu", "mlx:cpu")
    )
    start = families.init_params(load_architecture(str(tmp_path / "small.yaml")), seed=0)
    assert largest_difference(by_torch, start) > 5e-3
    assert largest_difference(by_torch, by_mlx) < 5e-4


@pytest.mark.slow
def test_in_turn_a_run_that_looks_ahead_takes_other_steps(tmp_path):
    common = {**MUON, "strategy": "round_robin", "workers": "mlx:cpu*2", "moments": "shared"}
    ahead, plain = (
        parameters(train(small_config(tmp_path, predict=predict, **common)))
        for predict in ("last", "none")
    )
    assert not identical(ahead, plain)


@pytest.mark.slow
def test_private_moments_become_those_of_all_and_the_other_way_round(tmp_path):
    common = {**MUON, "workers": "mlx:cpu*2", "steps": 20}
    private = train(small_config(tmp_path, moments="private", **common))
    shared = train(small_config(tmp_path, moments="shared", resume=private.run, **common))
    back = train(small_config(tmp_path, moments="private", resume=shared.run, **common))
    assert (back.status, back.steps) == ("done", 60)
    runs = [checkpoint.load(Path(str(result.checkpoint))) for result in (private, shared, back)]
    assert [any(key.startswith("m.1/") for key in run.optimizer) for run in runs] == [
        True, False, True,
    ]  # fmt: skip
    assert 0 < runs[1].state["moments_since"] < 20  # of two workers each had taken some


@pytest.mark.slow
def test_private_moments_that_were_those_of_all_have_seen_the_steps_of_all(tmp_path):
    common = {**MUON, "workers": "mlx:cpu*2", "steps": 20}
    shared = train(small_config(tmp_path, moments="shared", **common))
    assert sum(checkpoint.load(Path(str(shared.checkpoint))).state["opt_steps"].values()) == 20
    for workers in (2, 3):
        private = {**common, "moments": "private", "workers": f"mlx:cpu*{workers}"}
        planned = make_plan(small_config(tmp_path, resume=shared.run, **private))
        with Arena.create(planned.layout) as arena:
            start = restore(planned, arena, Ledger(arena))
            steps = [arena.workers.entry(slot).opt_step for slot in range(1, workers + 1)]
            assert steps == [20] * workers
        assert not any("averaged" in message for message in start.messages)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"async_after": 0.5}], ids=["hogwild", "async_after"])
def test_last_steps_are_restored_and_restart_with_another_optimizer_state(tmp_path, more):
    common = {**MUON, **more, "workers": "mlx:cpu*2", "steps": 20}
    first = train(small_config(tmp_path, **common))
    loaded = checkpoint.load(Path(str(first.checkpoint)))
    saved, hidden = loaded.optimizer, families.hidden_matrices(families.read(loaded.config))
    for name in loaded.params:
        assert saved[f"ahead.last/{name}"].any() == (name in hidden)
    for reset in (False, True):
        config = small_config(tmp_path, resume=first.run, reset_optimizer=reset, **common)
        planned = make_plan(config)
        with Arena.create(planned.layout) as arena:
            restore(planned, arena, Ledger(arena))
            for segment in look_ahead.SEGMENTS:
                flat = arena.segment(segment)
                assert flat.any() != reset
                for name, slot in arena.layout.slots.items():
                    own = flat[slot.offset : slot.offset + slot.size]
                    expected = saved[f"{segment}/{name}"].ravel()
                    assert np.array_equal(own, np.zeros_like(own) if reset else expected)
    assert train(small_config(tmp_path, resume=first.run, **common)).status == "done"


@pytest.mark.slow
def test_the_moments_of_another_optimizer_are_refused_or_dropped_on_request(tmp_path):
    first = train(small_config(tmp_path, **MUON))
    adamw = {"resume": first.run, "steps": 10}
    with pytest.raises(CheckpointError, match=r"optimizer muon, this is adamw.*--reset-optimizer"):
        train(small_config(tmp_path, **adamw))
    second = train(small_config(tmp_path, reset_optimizer=True, **adamw))
    assert (second.status, second.steps) == ("done", 30)
    saved = checkpoint.load(Path(str(second.checkpoint)))
    assert saved.state["optimizer"] == "adamw"
    assert saved.state["opt_steps"] == {"1": 10}


@pytest.mark.slow
def test_a_run_of_adamw_resumes_with_it_if_no_optimizer_is_named(tmp_path):
    first = train(small_config(tmp_path))
    resumed = {"resume": first.run, "steps": 10}
    assert (
        make_plan(small_config(tmp_path, optimizer="auto", lr=None, **resumed)).config.top_lr
        == 1e-3
    )
    second = train(small_config(tmp_path, optimizer="auto", **resumed))
    saved = checkpoint.load(Path(str(second.checkpoint)))
    assert (saved.state["optimizer"], saved.state["opt_steps"]) == ("adamw", {"1": 30})
    with pytest.raises(CheckpointError, match=r"optimizer adamw, this is muon.*--reset-optimizer"):
        make_plan(small_config(tmp_path, optimizer="muon", **resumed))


def test_the_stored_configuration_names_options_that_the_model_decided(tmp_path):
    result = train(small_config(tmp_path, optimizer="auto", lr=None))
    stored = yaml.safe_load((Path(result.run) / "config.yaml").read_text())
    assert stored["optimizer"] == Muon(beta1=0.9, nesterov=0.1, **EQUAL).to_dict()
    assert stored["lr"] == Muon().default_lr(32)


@pytest.mark.slow
def test_a_step_is_the_same_whichever_worker_orthogonalises(tmp_path):
    """Each thread of a worker, or each worker of a round, takes its own matrices."""
    common = {**MUON, "beta1": 0.9, "steps": 5}
    one, two = (
        train(small_config(tmp_path, strategy="serial", threads=threads, batch_size=4, **common))
        for threads in (1, 2)
    )
    assert largest_difference(parameters(one), parameters(two)) < 1e-4
    shared = train(small_config(tmp_path, strategy="sync", workers="mlx:cpu*2", **common))
    assert largest_difference(parameters(one), parameters(shared)) < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "serial"},
        {"orthogonalization_rows": 5, "orthogonalization_every": 3},
        {"gpu_write": "metal-emulated"},
        {"strategy": "sync", "workers": "mlx:cpu,torch:cpu", "beta1": 0.9},
        {"strategy": "async_ps"},
        {"strategy": "sim"},
        {"strategy": "diloco", "average_every": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_step_is_the_same_whether_the_cpu_or_the_workers_device_orthogonalises(tmp_path, options):
    common = {**MUON, "steps": 6, **options}
    by_cpu, by_worker = (
        parameters(train(small_config(tmp_path, orthogonalization_device=device, **common)))
        for device in ("cpu", "worker")
    )
    assert not identical(by_cpu, by_worker)  # sums are in another order
    assert largest_difference(by_cpu, by_worker) < 5e-4


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
