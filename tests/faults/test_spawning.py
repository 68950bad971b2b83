"""Workers run neither the caller's program nor modules that lie in the current directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.small import small_config

MLXHOG = Path(sys.executable).with_name("mlxhog")
PLANTED = ("multiprocessing", "numpy", "json", "pickle", "signal", "mlxhog", "sitecustomize")


def ended(command, folder, text=""):
    """Run a command in a folder; returns what it printed, and fails with what it said."""
    process = subprocess.run(
        command, input=text, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


def script(tmp_path):
    """A program without `if __name__ == "__main__"`."""
    config = small_config(tmp_path, steps=3)
    return (
        "import pathlib\n"
        "import mlxhog\n"
        f"result = mlxhog.train(model={config.model!r}, data={config.data!r}, seq_len=32, "
        "batch_size=2, workers='mlx:cpu', threads=1, eval_every='off', sample_every='off', "
        "steps=3, out='runs')\n"
        "print(result.status, len(list(pathlib.Path('runs').iterdir())))\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["file", "standard input", "-c", "interactive"])
def test_a_program_without_a_main_guard_trains_once(tmp_path, form):
    program = script(tmp_path)
    (tmp_path / "program.py").write_text(program)
    words, text = {
        "file": (["program.py"], ""),
        "standard input": (["-"], program),
        "-c": (["-c", program], ""),
        "interactive": (["-i"], program),
    }[form]
    assert ended([sys.executable, *words], tmp_path, text) == "done 1\n"


def test_what_only_the_program_defines_is_refused_in_one_line(tmp_path):
    program = (
        "from mlxhog.arena.worker_pool import WorkerProcess\n"
        "from mlxhog.errors import ConfigError\n"
        "class Mine: pass\n"
        "try:\n"
        "    WorkerProcess(print, (Mine(),), name='child')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    text = ended([sys.executable, "-"], tmp_path, program)
    assert text.count("\n") == 1
    assert "Mine" in text
    assert "move it to a module of its own" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "train --model small.yaml --data text --steps 2 --seq-len 32 --workers mlx:cpu --json",
        "classic svm --size 200 --epochs 1 --workers 1 --no-serial --json",
        "mad data --task M --train-rows 600 --test-rows 300 --out rows.npz",
    ],
    ids=lambda words: words.split()[0],
)
def test_no_process_of_a_command_imports_from_the_current_directory(tmp_path, words):
    small_config(tmp_path)  # writes the model and the text
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(
            f"with open({os.fspath(tmp_path / 'ran')!r}, 'a') as ran: ran.write('{name} ')\n"
        )
    ended([MLXHOG, *words.split()], tmp_path)
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
