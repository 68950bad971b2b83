"""The form of the model's operations of workers: its choice, refusals, and reports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.base import machine, verdicts
from mlxhog.base.machine import Machine
from mlxhog.base.verdicts import Verdicts
from mlxhog.cli.train import summary
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.report.metrics import kernels_used, label
from mlxhog.training import kernel_choice, worker
from mlxhog.training.plan import make_plan
from tests.base.test_verdicts import kernel
from tests.pairs import each_of
from tests.training import stand_in_gpu as stand_in_gpu_worker
from tests.training.small import (
    identical,
    largest_difference,
    mixed_model,
    parameters,
    small_config,
)

MAC = Machine("macos", "arm64", 10, 8 << 30, "Apple M4 Pro", frozenset({"mlx", "torch"}))
UNTESTED = Verdicts(Path("record.json"), "this machine has not been tested: run `mlxhog doctor`")


def measured(metal=300.0, *, ok=True):
    """A record of a Mac whose MLX GPU has been measured, and torch's not."""
    record = {
        "kernels": [kernel("mlx", ok=ok)],
        "tokens_per_s": {"mlx:gpu": 200.0},
        "tokens_per_s_metal": {"mlx:gpu": metal},
    }
    return Verdicts(Path("record.json"), None, record)


FASTER, SLOWER, WRONG = measured(), measured(100.0), measured(ok=False)


def resolved(backends, record, **options):
    config = TrainConfig(**options)
    return kernel_choice.choose_kernels(config, backends.split(), record)


@each_of(
    ("backends", "record", "options", "expected"),
    [
        ("mlx:cpu torch:cpu", UNTESTED, {}, "native native"),
        ("mlx:gpu mlx:cpu", UNTESTED, {}, "metal native"),
        ("mlx:gpu mlx:cpu mlx:gpu", FASTER, {}, "metal native metal"),
        ("mlx:gpu torch:mps", FASTER, {}, "metal reference"),
        ("mlx:gpu", SLOWER, {}, "reference"),
        ("mlx:gpu", WRONG, {}, "reference"),
        ("mlx:gpu", WRONG, {"force": True}, "reference"),
        ("mlx:gpu mlx:cpu", FASTER, {"kernels": "reference"}, "reference reference"),
        ("mlx:gpu", SLOWER, {"kernels": "metal"}, "metal"),
        ("mlx:gpu", WRONG, {"kernels": "metal", "force": True}, "metal"),
        ("mlx:cpu torch:cpu", UNTESTED, {"kernels": "native"}, "native native"),
        ("mlx:cpu", UNTESTED, {"kernels": "metal-emulated"}, "metal-emulated"),
    ],
)
def test_a_choice_of_kernels_has_one_meaning_for_each_worker(backends, record, options, expected):
    assert resolved(backends, record, **options).of_workers == tuple(expected.split())


@each_of(
    ("backends", "record", "reasons"),
    [
        ("mlx:gpu mlx:gpu", FASTER, ["metal on mlx:gpu, 300 tokens/s"]),
        ("mlx:gpu", WRONG, ["reference on mlx:gpu, because on mlx these differ from reference"]),
        ("mlx:gpu", UNTESTED, ["metal on mlx:gpu, which each worker checks when it starts; this"]),
        ("mlx:gpu", SLOWER, []),
        ("mlx:cpu torch:cpu", UNTESTED, []),
    ],
)
def test_auto_reports_its_choice_for_a_gpu_if_that_is_useful(backends, record, reasons):
    notes = resolved(backends, record).notes
    assert len(notes) == len(reasons)
    for note, words in zip(notes, reasons, strict=True):
        assert note.startswith(f"kernels auto: {words}")


def test_a_choice_that_was_made_by_the_user_needs_no_note():
    for kernels in ("reference", "metal"):
        assert resolved("mlx:gpu", FASTER, kernels=kernels).notes == ()


@each_of(
    ("backends", "kernels", "refused"),
    [
        ("mlx:gpu torch:cpu", "metal", "torch:cpu"),
        ("mlx:cpu torch:mps", "native", "torch:mps"),
        ("mlx:gpu", "metal-emulated", "mlx:gpu"),
    ],
)
def test_a_worker_that_cannot_run_the_kernels_is_named_with_the_way_out(backends, kernels, refused):
    with pytest.raises(ConfigError, match=f"'{kernels}', which {refused} cannot run; use auto"):
        resolved(backends, FASTER, kernels=kernels, force=True)


@pytest.mark.parametrize(
    ("record", "reason"),
    [(WRONG, "these differ from reference"), (UNTESTED, "has not been tested")],
)
def test_metal_kernels_that_are_not_known_to_be_right_are_refused(record, reason):
    with pytest.raises(EnvironmentLacks, match=f"of mlx:gpu is not known.*{reason}.*--force"):
        resolved("mlx:gpu", record, kernels="metal")


def test_the_plan_of_a_mac_names_the_kernels_of_every_worker(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "here", lambda: MAC)
    monkeypatch.setattr(verdicts, "load", lambda: FASTER)
    planned = make_plan(small_config(tmp_path, workers="mlx:gpu,mlx:cpu*2"))
    assert planned.kernels == ("metal", "native", "native")
    assert not planned.emulated
    assert [note for note in planned.notes if note.startswith("kernels auto: metal on mlx:gpu")]


@pytest.mark.slow
def test_a_run_in_bfloat16_says_that_its_cpus_use_the_plain_operations(tmp_path):
    config = small_config(tmp_path, compute_dtype="bfloat16", workers="mlx:cpu*2")
    planned = make_plan(config)
    assert planned.kernels == ("reference", "reference")
    assert "kernels auto: reference on CPUs" in " ".join(planned.notes)
    result = train(config)
    assert result.status == "done"
    assert result.to_json()["kernels"] == "reference"
    with pytest.raises(ConfigError, match="cannot compute with bfloat16 weights; use auto"):
        make_plan(small_config(tmp_path, compute_dtype="bfloat16", kernels="native"))


def test_kernels_no_worker_can_run_are_refused_before_anything_is_started(tmp_path):
    with pytest.raises(ConfigError, match="'metal', which mlx:cpu cannot run"):
        train(small_config(tmp_path, kernels="metal"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_every_output_names_the_kernels_that_ran_and_not_the_requested_ones(tmp_path):
    reports = []
    result = train(small_config(tmp_path, steps=3), observer=reports.append)
    assert result.to_json()["kernels"] == "native"
    assert {progress.kernels for progress in reports} == {"native"}
    assert json.loads((Path(result.run) / "run.json").read_text())["kernels"] == "native"


def test_several_forms_are_all_named_once():
    assert kernels_used(["reference", "metal", "metal"]) == "reference,metal"
    assert label("cpu", "reference,metal") == "kernels reference,metal"
    assert label("cpu", "reference,native") == ""


# -- a run whose operators are Metal source on the CPU: the same training, and it says so ----------


@pytest.mark.slow
def test_training_on_emulated_kernels_gives_the_parameters_of_the_reference(tmp_path):
    reports = []
    options = {"steps": 10, "workers": "mlx:cpu"}
    reference = train(small_config(tmp_path, **options, kernels="reference"))
    emulated = train(
        small_config(tmp_path, **options, kernels="metal-emulated"), observer=reports.append
    )
    # Ten steps of 1e-3; both compute in float32, in other orders.
    assert largest_difference(parameters(emulated), parameters(reference)) < 1e-4
    assert reference.to_json()["emulated"] is False
    assert emulated.to_json()["emulated"] is True
    assert "kernels metal-emulated: Metal source ran on the CPU" in summary(emulated)
    assert "kernels metal-emulated: Metal source on the CPU, a test" in str(reports[0].message)
    assert json.loads((Path(emulated.run) / "run.json").read_text())["emulated"] is True


@pytest.mark.slow
def test_a_mixed_stack_trains_on_emulated_kernels_to_the_parameters_of_the_reference(tmp_path):
    options = {"steps": 3, "model": mixed_model(tmp_path)}
    reference = train(small_config(tmp_path, **options, kernels="reference"))
    emulated = train(
        small_config(tmp_path, **options, workers="torch:cpu", kernels="metal-emulated")
    )
    # Three steps of 1e-3; both compute in float32, in other orders.
    assert largest_difference(parameters(emulated), parameters(reference)) < 1e-4


# -- the check of Metal kernels when a worker starts -----------------------------------------------


@pytest.fixture
def stand_in_gpu(monkeypatch):
    """This machine has Apple's GPU, as its workers see it."""
    here = replace(machine.here(), chip="Apple M4 Pro")
    monkeypatch.setattr(Machine, "apple_gpu", True)
    monkeypatch.setattr(machine, "here", lambda: here)
    monkeypatch.setattr(worker, "main", stand_in_gpu_worker.main)
    return monkeypatch


def plant(monkeypatch, **fault):
    monkeypatch.setenv(stand_in_gpu_worker.FAULTY, json.dumps(fault))


def events(run):
    lines = (Path(run) / "events.jsonl").read_text().splitlines()
    return [event["text"] for event in map(json.loads, lines) if event["kind"] == "message"]


@pytest.mark.slow
def test_a_run_with_a_wrong_kernel_trains_by_the_plain_operator_and_says_so(stand_in_gpu, tmp_path):
    options = {"steps": 4, "workers": "mlx:gpu", "strategy": "serial", "batch_size": 4}
    plant(stand_in_gpu, kernel="mlstm_out")
    messages = []
    faulty = train(
        small_config(tmp_path, **options),
        observer=lambda progress: messages.append(progress.message or ""),
    )
    plain = train(small_config(tmp_path, **options, kernels="reference"))
    assert identical(parameters(faulty), parameters(plain))
    (said,) = [one for one in messages if "failed their check" in one]
    assert said.startswith(
        "worker 1 (mlx:gpu) uses the plain mlx operators mlstm_cell, whose Metal"
    )
    assert "is off by " in said
    assert said in events(faulty.run)
    status = json.loads((Path(faulty.run) / "run.json").read_text())
    assert (status["kernels"], status["notices"]) == ("metal", [said])
    assert json.loads((Path(plain.run) / "run.json").read_text())["notices"] == []


def test_a_run_with_right_kernels_uses_them_and_says_nothing(stand_in_gpu, tmp_path):
    plant(stand_in_gpu, kernel="none")
    result = train(small_config(tmp_path, steps=2, workers="mlx:gpu", batch_size=4))
    assert result.to_json()["kernels"] == "metal"
    assert json.loads((Path(result.run) / "run.json").read_text())["notices"] == []


@pytest.mark.slow
def test_requested_kernels_that_are_wrong_end_the_run_with_the_way_out(stand_in_gpu, tmp_path):
    stand_in_gpu.setattr(verdicts, "load", lambda: FASTER)
    plant(stand_in_gpu, kernel="mlstm_out")
    options = {"steps": 2, "workers": "mlx:gpu", "batch_size": 4}
    with pytest.raises(EnvironmentLacks, match=r"mlstm_cell: .* is off by .*--kernels auto"):
        train(small_config(tmp_path, **options, kernels="metal"))
    assert train(small_config(tmp_path, **options, kernels="metal", force=True)).status == "done"


@pytest.mark.slow
def test_a_model_that_the_kernels_do_not_compute_is_trained_by_plain_operators(
    stand_in_gpu, tmp_path
):
    plant(stand_in_gpu, kernel="mlstm_out", by=None, only={"B": 4})  # the check has fewer
    options = {"steps": 4, "workers": "mlx:gpu", "strategy": "serial", "batch_size": 4}
    result = train(small_config(tmp_path, **options))
    plain = train(small_config(tmp_path, **options, kernels="reference"))
    assert identical(parameters(result), parameters(plain))
    (said,) = json.loads((Path(result.run) / "run.json").read_text())["notices"]
    assert said.startswith("worker 1 (mlx:gpu) uses plain operators only: its Metal kernels")
    assert "mlstm_out does not compile" in said
    assert said in events(result.run)
