"""Runs of mlxhog 0.2 load and resume, with every strategy, optimizer and schedule that it had."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import read_options
from mlxhog.cli import main
from mlxhog.config.choices import KINDS
from mlxhog.config.optimizer import GROUPS
from mlxhog.config.options import options
from mlxhog.training.api import configured
from tests.training.stored_runs import SAMPLES, STORED

LATER = dict.fromkeys(GROUPS.values(), 1.0) | {
    "teacher": "off", "ngram_lr": 0.03, "orthogonalization_device": "cpu", "keep_awake": True,
    "overlap": False, "cluster": "off",
}  # fmt: skip
"""Options that 0.2 did not have, and their values for its runs."""
WITHOUT_EFFECT = {"eval_tokens": "auto"}
"""Options that 0.2 stored with eval_every off, and that are dropped now."""

every_run = pytest.mark.parametrize("name", SAMPLES)


def loaded(path: Path) -> dict[str, Any]:
    """Every option of a configuration file as `train -c` reads it, by its flat name."""
    values: dict[str, Any] = yaml.safe_load(configured([read_options(path)]).to_yaml())
    values["layers_from"] = values.pop("plugin")
    for kind in KINDS:
        if isinstance(chosen := values[kind.title], dict):
            specs = options(kind.find(chosen["name"])).values()
            values |= {one.flat: chosen[one.name] for one in specs}
            values[kind.title] = chosen["name"]
    return values


def stored(name: str) -> dict[str, Any]:
    """Every option as mlxhog 0.2 wrote it, and those that it did not have."""
    values: dict[str, Any] = yaml.safe_load((STORED / name / "config.yaml").read_text())
    return LATER | values


def asked(name: str) -> list[str]:
    """The options that the command of a run gave; every sample names its choices."""
    words = shlex.split(SAMPLES[name])
    return [word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")]


@every_run
def test_a_configuration_of_0_2_loads_with_the_same_choices_and_numbers(name: str) -> None:
    values, written = loaded(STORED / name / "config.yaml"), stored(name)
    written |= {one: auto for one, auto in WITHOUT_EFFECT.items() if values[one] == auto}
    assert values == {option: written[option] for option in values}
    assert {"strategy", "optimizer", "schedule", *asked(name)} <= values.keys()


@pytest.mark.slow
@every_run
def test_a_run_of_0_2_resumes_with_the_numbers_it_began_with(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(STORED / name, tmp_path / name)
    shutil.copy(STORED / "text.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    workers = stored(name)["workers"].replace("torch", "mlx")  # which starts sooner
    more = ["--steps", "2", "--workers", workers, "--json", "--quiet"]
    assert main(["train", "--resume", name, *more]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["status"], result["steps"]) == ("done", 4)
    state = checkpoint.load(Path(result["checkpoint"])).state
    assert state["optimizer"] == stored(name)["optimizer"]
    now = loaded(tmp_path / name / "config.yaml")
    changed = {option for option in now if now[option] != stored(name)[option]}
    assert changed <= {"steps", "out", "workers", *WITHOUT_EFFECT}
