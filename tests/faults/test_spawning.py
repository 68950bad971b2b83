"""Workers run neither the caller's program nor modules that lie in the current directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.small import small_config

pytestmark = pytest.mark.slow

MLXHOG = Path(sys.executable).with_name("mlxhog")
PLANTED = ("multiprocessing", "numpy", "json", "pickle", "signal", "mlxhog", "sitecustomize")


def ended(command: list[str | Path], folder: Path, text: str = "") -> str:
    """Run a command in a folder; returns what it printed, and fails with what it said."""
    done = subprocess.run(
        command, input=text, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def script(tmp_path: Path) -> str:
    """A program without `if __name__ == "__main__"`."""
    config = small_config(tmp_path, steps=3)
    return (
        "import pathlib\n"
        "from mlxhog import TrainConfig, train\n"
        f"config = TrainConfig(model={config.model!r}, data={config.data!r}, seq_len=32, "
        "batch_size=2, workers='mlx:cpu', threads=1, eval_every='off', sample_every='off', "
        "steps=3, out='runs')\n"
        "print(train(config).status, len(list(pathlib.Path('runs').iterdir())))\n"
    )


def test_a_script_without_a_main_guard_trains_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(script(tmp_path))
    assert ended([sys.executable, program], tmp_path) == "done 1\n"


def test_a_program_on_standard_input_trains(tmp_path: Path) -> None:
    assert ended([sys.executable, "-"], tmp_path, script(tmp_path)) == "done 1\n"


def test_what_only_the_program_defines_is_refused_in_one_line(tmp_path: Path) -> None:
    program = (
        "from mlxhog.arena.worker_pool import WorkerProcess\n"
        "from mlxhog.errors import ConfigError\n"
        "class Mine: pass\n"
        "try:\n"
        "    WorkerProcess(print, (Mine(),), name='child')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    said = ended([sys.executable, "-"], tmp_path, program)
    assert said.count("\n") == 1
    assert "Mine" in said
    assert "move it to a module of its own" in said


@pytest.mark.parametrize(
    "words",
    [
        "train --model small.yaml --data text --steps 2 --seq-len 32 --workers mlx:cpu --json",
        "classic svm --size 200 --epochs 1 --workers 1 --no-serial --json",
        "mad data --task M --train-rows 600 --test-rows 300 --processes 2 --out rows.npz",
    ],
    ids=lambda words: words.split()[0],
)
def test_no_process_of_a_command_imports_from_the_current_directory(
    tmp_path: Path, words: str
) -> None:
    small_config(tmp_path)  # writes the model and the text
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(
            f"with open({os.fspath(tmp_path / 'ran')!r}, 'a') as ran: ran.write('{name} ')\n"
        )
    ended([MLXHOG, *words.split()], tmp_path)
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
