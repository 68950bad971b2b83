"""Steps through Metal kernels: their choice, their promises, and their mention in every output.

No Mac is needed: `metal-emulated` runs the project's Metal source on the CPU.
"""

import json
from pathlib import Path

import pytest

from mlxhog import TrainConfig, train
from mlxhog.base.verdicts import Verdict, Verdicts
from mlxhog.cli.train import summary
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.training import kernel_choice
from tests.pairs import each_of
from tests.training.small import identical, parameters, small_config

EMULATED = {"gpu_write": "metal-emulated"}


def run(tmp_path, **options):
    return train(small_config(tmp_path, **options))


# -- promises of a run through Metal source --------------------------------------------------------


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


GOOD, BAD = Doctor(True), Doctor(False)


METAL, AUTO, FORCE = {"gpu_write": "metal"}, {"gpu_write": "auto"}, {"force": True}
LIVE = {"read": "live", "predict": "none"}
NEVER = Verdicts(Path("none"), "this machine has not been tested: run `mlxhog doctor`")


@each_of(
    ("backends", "doctor", "options", "expected", "said"),
    [
        ("mlx:gpu mlx:cpu", BAD, {}, "cpu lossless", ""),
        ("mlx:cpu", BAD, {"write": "racy"}, "cpu racy", ""),
        ("mlx:gpu", GOOD, METAL, "metal cas", ""),
        ("mlx:gpu mlx:cpu", GOOD, METAL, "metal cas", ""),
        ("mlx:gpu", BAD, {**METAL, **FORCE}, "metal cas", ""),
        ("mlx:gpu", GOOD, AUTO, "metal cas", "auto: metal, no update was lost"),
        ("mlx:gpu torch:mps", GOOD, {**AUTO, "write": "cas"}, "metal cas", "auto: metal"),
        ("torch:cpu", BAD, EMULATED, "metal-emulated cas", ""),
        ("mlx:gpu mlx:cpu", GOOD, AUTO, "cpu lossless", "CPU workers add to the same parameters"),
        ("mlx:gpu", BAD, AUTO, "cpu lossless", "auto: cpu, because lost 3 of 9 adds here"),
        ("mlx:cpu", GOOD, AUTO, "cpu lossless", "no worker of this run uses a GPU"),
        ("mlx:gpu", GOOD, {**AUTO, "write": "lossless"}, "cpu lossless", "write=lossless was req"),
        ("mlx:gpu", GOOD, LIVE, "cpu lossless", ""),
        ("mlx:gpu", BAD, {**LIVE, **FORCE}, "cpu lossless", ""),
        ("torch:cpu", BAD, LIVE, "cpu lossless", ""),
        ("mlx:cpu torch:cpu", GOOD, METAL, ConfigError, "needs a GPU worker.*metal-emulated"),
        ("mlx:gpu", BAD, METAL, EnvironmentLacks, "lost 3 of 9.*mlxhog doctor.*--force"),
        ("mlx:gpu", BAD, LIVE, EnvironmentLacks, "read=live of mlx:gpu.*mlxhog doctor.*--force"),
        ("mlx:gpu", NEVER, METAL, EnvironmentLacks, "run `mlxhog doctor`"),
        ("mlx:gpu", GOOD, {**METAL, "write": "racy"}, ConfigError, "is racy, but beside gpu_write"),
    ],
)
def test_a_choice_of_writers_has_one_meaning(backends, doctor, options, expected, said):
    notes = []

    def choose():
        config = TrainConfig(**options)
        return kernel_choice.choose_writers(config, backends.split(), doctor, notes.append)

    if not isinstance(expected, str):
        with pytest.raises(expected, match=said):
            choose()
        return
    writers = choose()
    assert f"{writers.gpu_write} {writers.write}" == expected
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)
