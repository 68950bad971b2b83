"""Steps through Metal kernels: their choice, their promises, and their mention in every output.

No Mac is needed: `metal-emulated` runs the project's Metal source on the CPU.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from mlxhog import TrainConfig, train
from mlxhog.base import verdicts
from mlxhog.base.verdicts import Verdict, Verdicts
from mlxhog.checkpoint import checkpoint
from mlxhog.cli.train import summary
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.report.plain import line
from mlxhog.training import kernel_choice
from tests.cli.test_cli import RESULT
from tests.pairs import each_of
from tests.report.test_terminal import PROGRESS, shown
from tests.training.small import identical, parameters, small_config
from tests.training.test_deaths import Killer

EMULATED = {"gpu_write": "metal-emulated"}


def run(tmp_path, **options):
    return train(small_config(tmp_path, **options))


# -- promises of a run through Metal source --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": 0.1, "strategy": "serial"},
        {"moments": "shared", "grad_accumulation": 2, "clip": 0.1},
        {"optimizer": "muon", "lr": 0.003},
        {"optimizer": "momentum", "lr": 0.01, "strategy": "sync", "workers": "mlx:cpu*2"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_optimizer_and_strategy_takes_the_same_steps_through_metal_source(tmp_path, options):
    native = run(tmp_path, **options)
    metal = run(tmp_path, **options, **EMULATED)
    assert metal.steps == native.steps == 20
    # The source runs without fused multiply-adds, so even the bits agree.
    assert identical(parameters(metal), parameters(native))


@pytest.mark.slow
def test_workers_of_both_frameworks_lose_no_update_through_metal_source(tmp_path):
    result = run(tmp_path, workers="mlx:cpu,torch:cpu", steps=60, **EMULATED)
    assert result.status == "done"
    assert result.lost_update_rate == 0


@pytest.mark.slow
def test_a_run_through_metal_source_is_resumed_by_native_steps(tmp_path):
    schedule = {"schedule": "constant", "warmup": 0}
    whole = run(tmp_path, steps=20, **schedule, **EMULATED)
    first = run(tmp_path, steps=10, **schedule, **EMULATED)
    result = run(tmp_path, steps=10, **schedule, resume=first.run)
    assert identical(parameters(result), parameters(whole))
    assert (result.to_json()["gpu_write"], result.to_json()["emulated"]) == ("cpu", True)
    assert "earlier steps of this run came from Metal source on the CPU" in summary(result)
    assert json.loads((Path(result.run) / "run.json").read_text())["emulated"] is True


@pytest.mark.slow
def test_a_worker_killed_in_mid_step_is_replaced_and_no_other_step_is_lost(tmp_path):
    config = small_config(tmp_path, workers="mlx:cpu*2", steps=200, **EMULATED)
    result = Killer(kills=1).train(config)
    assert (result.status, result.restarts) == ("done", 1)
    assert result.lost_update_rate == 0  # an add whose worker died before counting it is one more


@pytest.mark.slow
def test_every_output_says_that_steps_were_emulated(tmp_path):
    reports = []
    result = train(
        small_config(tmp_path, workers="mlx:cpu", steps=10, **EMULATED), observer=reports.append
    )
    assert result.to_json()["gpu_write"] == "metal-emulated"
    assert result.to_json()["emulated"] is True
    opening = reports[0].message
    assert opening is not None
    assert "gpu-write metal-emulated: Metal source on the CPU, a test" in opening
    assert "gpu-write metal-emulated" in line(reports[-1])
    assert reports[-1].to_json()["gpu_write"] == "metal-emulated"
    status = json.loads((Path(result.run) / "run.json").read_text())
    assert (status["gpu_write"], status["emulated"]) == ("metal-emulated", True)
    assert result.checkpoint is not None
    state = checkpoint.load(Path(result.checkpoint)).state
    assert state["writers"] == {"gpu_write": "metal-emulated", "write": "cas"}
    assert state["emulated"] is True
    assert "gpu-write metal-emulated: Metal source ran on the CPU" in summary(result)


def test_a_run_of_native_steps_says_so_too(tmp_path):
    reports = []
    result = train(small_config(tmp_path, steps=3), observer=reports.append)
    assert (result.to_json()["gpu_write"], result.to_json()["emulated"]) == ("cpu", False)
    assert "gpu-write" not in (reports[0].message or "")
    assert "gpu-write" not in line(reports[-1])


# -- the meaning of each choice --------------------------------------------------------------------


class Doctor:
    """A verdict on every question, in place of this machine's record."""

    def __init__(self, ok, reason="lost 3 of 9 adds here"):
        self.verdict = Verdict(ok, reason)

    def gpu_write(self, backends):
        return self.verdict

    def live_read(self, backend):
        return self.verdict

    def kernels(self, engine):
        return self.verdict


def resolved(backends, doctor, **options):
    config = TrainConfig(**options)
    return kernel_choice.choose_writers(config, backends.split(), cast(Verdicts, doctor))


GOOD, BAD = Doctor(True), Doctor(False)


@each_of(
    ("backends", "doctor", "options", "expected"),
    [
        ("mlx:gpu mlx:cpu", BAD, {}, ("cpu", "lossless")),
        ("mlx:cpu", BAD, {"write": "racy"}, ("cpu", "racy")),
        ("mlx:gpu", GOOD, {"gpu_write": "metal"}, ("metal", "cas")),
        ("mlx:gpu mlx:cpu", GOOD, {"gpu_write": "metal"}, ("metal", "cas")),
        ("mlx:gpu", BAD, {"gpu_write": "metal", "force": True}, ("metal", "cas")),
        ("mlx:gpu", GOOD, {"gpu_write": "auto"}, ("metal", "cas")),
        ("mlx:gpu torch:mps", GOOD, {"gpu_write": "auto", "write": "cas"}, ("metal", "cas")),
        ("torch:cpu", BAD, EMULATED, ("metal-emulated", "cas")),
    ],
)
def test_a_choice_of_writers_has_one_meaning(backends, doctor, options, expected):
    writers = resolved(backends, doctor, **options)
    assert (writers.gpu_write, writers.write) == expected


@each_of(
    ("backends", "doctor", "options", "reason"),
    [
        ("mlx:gpu mlx:cpu", GOOD, {}, "CPU workers add to the same parameters"),
        ("mlx:gpu", BAD, {}, "lost 3 of 9 adds here"),
        ("mlx:cpu", GOOD, {}, "no worker of this run uses a GPU"),
        ("mlx:gpu", GOOD, {"write": "lossless"}, "write=lossless was requested"),
    ],
)
def test_auto_falls_back_to_the_cpu_and_says_why(backends, doctor, options, reason):
    writers = resolved(backends, doctor, gpu_write="auto", **options)
    assert (writers.gpu_write, writers.write) == ("cpu", "lossless")
    (note,) = writers.notes
    assert note.startswith("gpu_write auto: cpu")
    assert reason in note


def test_auto_says_so_when_it_chooses_metal():
    assert "metal" in resolved("mlx:gpu", GOOD, gpu_write="auto").notes[0]


def test_metal_without_a_gpu_worker_or_a_good_verdict_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="needs a GPU worker.*metal-emulated"):
        resolved("mlx:cpu torch:cpu", GOOD, gpu_write="metal")
    with pytest.raises(EnvironmentLacks, match="lost 3 of 9.*mlxhog doctor.*--force"):
        resolved("mlx:gpu", BAD, gpu_write="metal")


def test_live_reads_of_a_gpu_need_a_good_verdict_too():
    options = {"read": "live", "predict": "none"}
    with pytest.raises(EnvironmentLacks, match="read=live of mlx:gpu.*mlxhog doctor.*--force"):
        resolved("mlx:gpu", BAD, **options)
    for backends, doctor, more in (
        ("mlx:gpu", GOOD, {}),
        ("mlx:gpu", BAD, {"force": True}),
        ("torch:cpu", BAD, {}),
    ):
        assert resolved(backends, doctor, **options, **more).gpu_write == "cpu"


def test_without_a_record_of_this_machine_metal_is_refused(tmp_path):
    with pytest.raises(EnvironmentLacks, match="run `mlxhog doctor`"):
        kernel_choice.choose_writers(
            TrainConfig(gpu_write="metal"), ["mlx:gpu"], verdicts.load(tmp_path)
        )


@each_of("write", ["lossless", "racy"])
@each_of("who", ["metal", "metal-emulated"])
def test_locks_beside_metal_kernels_are_a_contradiction(write, who):
    with pytest.raises(
        ConfigError, match=f"is {write}, but beside gpu_write={who}.*set write=auto"
    ):
        TrainConfig(write=write, gpu_write=who)


def test_each_worker_gets_the_engine_of_its_framework():
    def engines(who):
        writers = kernel_choice.Writers(who, "cas")
        return [writers.engine(b) for b in ("mlx:gpu", "mlx:cpu", "torch:mps", "torch:cpu")]

    assert engines("cpu") == [None] * 4
    assert engines("metal") == ["mlx", None, "mps", None]
    assert engines("metal-emulated") == ["emulated:mlx"] * 2 + ["emulated:mps"] * 2


def test_the_table_on_a_terminal_names_who_adds_the_steps():
    assert "gpu-write" not in shown(PROGRESS)
    assert "gpu-write metal" in shown(replace(PROGRESS, gpu_write="metal"))
    assert "kernels metal-emulated" in shown(replace(PROGRESS, kernels="metal-emulated"))


def test_emulated_operations_of_the_model_make_a_run_emulated():
    result = replace(RESULT, kernels="metal-emulated")
    assert result.to_json()["emulated"] is True
    assert "kernels metal-emulated: Metal source ran on the CPU" in summary(result)
    assert replace(RESULT, kernels="metal").to_json()["emulated"] is False
