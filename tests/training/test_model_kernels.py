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
from mlxhog.training import kernel_choice, worker
from mlxhog.training.plan import make_plan
from tests.base.test_verdicts import kernel
from tests.pairs import each_of
from tests.training import stand_in_gpu as stand_in_gpu_worker
from tests.training.small import Messages, identical, parameters, small_config

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


FORCE, METAL, PLAIN = {"force": True}, {"kernels": "metal"}, {"kernels": "reference"}


@each_of(
    ("backends", "record", "options", "expected", "said"),
    [
        ("mlx:cpu torch:cpu", UNTESTED, {}, "native native", ""),
        ("mlx:gpu mlx:cpu", UNTESTED, {}, "metal native", "metal on mlx:gpu, which each worker ch"),
        ("mlx:gpu mlx:cpu mlx:gpu", FASTER, {}, "metal native metal", "metal on mlx:gpu, 300 tok"),
        ("mlx:gpu torch:mps", FASTER, {}, "metal reference", "metal on mlx:gpu, 300 tokens/s"),
        ("mlx:gpu", SLOWER, {}, "reference", ""),
        ("mlx:gpu", WRONG, {}, "reference", "reference on mlx:gpu, because on mlx these differ"),
        ("mlx:gpu", WRONG, FORCE, "reference", "reference on mlx:gpu, because on mlx these diff"),
        ("mlx:gpu mlx:cpu", FASTER, PLAIN, "reference reference", ""),
        ("mlx:gpu", SLOWER, METAL, "metal", ""),
        ("mlx:gpu", WRONG, {**METAL, **FORCE}, "metal", ""),
        ("mlx:cpu torch:cpu", UNTESTED, {"kernels": "native"}, "native native", ""),
        ("mlx:cpu", UNTESTED, {"kernels": "metal-emulated"}, "metal-emulated", ""),
        ("mlx:gpu torch:cpu", FASTER, METAL, ConfigError, "which torch:cpu cannot run; use auto"),
        ("mlx:cpu torch:mps", FASTER, {"kernels": "native"}, ConfigError, "torch:mps cannot run"),
        ("mlx:gpu", FASTER, {"kernels": "metal-emulated"}, ConfigError, "mlx:gpu cannot run; use"),
        ("mlx:gpu", WRONG, METAL, EnvironmentLacks, "mlx:gpu is not known.*these differ.*--force"),
        ("mlx:gpu", UNTESTED, METAL, EnvironmentLacks, "has not been tested.*--force"),
    ],
)
def test_a_choice_of_kernels_has_one_meaning_for_each_worker(
    backends, record, options, expected, said
):
    notes = []
    asked = (TrainConfig(**options), backends.split(), record, notes.append)
    if not isinstance(expected, str):
        with pytest.raises(expected, match=said):
            kernel_choice.choose_kernels(*asked)
        return
    kernels = kernel_choice.choose_kernels(*asked)
    assert kernels == tuple(expected.split())
    assert bool(notes) == bool(said)
    assert not said or notes[0].startswith(f"kernels auto: {said}")


@pytest.mark.slow
def test_a_run_in_bfloat16_says_that_its_cpus_use_the_plain_operations(tmp_path):
    config = small_config(tmp_path, compute_dtype="bfloat16", workers="mlx:cpu*2")
    planned = make_plan(config)
    assert planned.kernels == ("reference", "reference")
    assert "kernels auto: reference on CPUs" in " ".join(planned.notes)
    result = train(config)
    assert result.status == "done"
    assert result.to_json()["kernels"] == "reference"
    assert result.to_json()["emulated"] is False


# -- a run whose operators are Metal source on the CPU: the same training, and it says so ----------


@pytest.mark.slow
def test_training_on_emulated_kernels_says_so_everywhere(tmp_path):
    reports = []
    config = small_config(tmp_path, steps=2, kernels="metal-emulated")
    emulated = train(config, observer=reports.append)
    assert emulated.to_json()["emulated"] is True
    assert "kernels metal-emulated: Metal source ran on the CPU" in summary(emulated)
    assert "kernels metal-emulated: Metal source on the CPU, a test" in str(reports[0].message)
    assert json.loads((Path(emulated.run) / "run.json").read_text())["emulated"] is True


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
    messages = Messages()
    faulty = train(
        small_config(tmp_path, **options),
        observer=messages,
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
