"""Workers run neither the caller's program nor modules that lie in the current directory."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import mlxhog
from mlxhog import cli
from tests.training.small import flags, small_config

MLXHOG = Path(sys.executable).with_name("mlxhog")
PLANTED = ("multiprocessing", "numpy", "json", "pickle", "signal", "mlxhog", "sitecustomize")


def ended(command, folder, text=""):
    """Run a command in a folder; returns what it printed, and fails with what it said."""
    process = subprocess.run(
        command, input=text, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


PROGRAM = """
import pathlib
import mlxhog
how = dict(seq_len=32, batch_size=2, workers='mlx:cpu', threads=1, steps=3, runs_dir='runs')
result = mlxhog.train(model={model!r}, data={data!r}, eval_every='off', sample_every='off', **how)
print(result.status, len(list(pathlib.Path('runs').iterdir())))
"""
DEFINES = """
from mlxhog.base.child_processes import WorkerProcess
from mlxhog.errors import ConfigError
class Mine: pass
try:
    WorkerProcess(print, (Mine(),), name='child')
except ConfigError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["program.py", "-i"])
def test_a_program_without_a_main_guard_trains_once(tmp_path, form):
    config = small_config(tmp_path, steps=3)
    program = PROGRAM.format(model=config.model, data=config.data)
    (tmp_path / "program.py").write_text(program)
    text = program if form == "-i" else ""
    assert ended([sys.executable, form], tmp_path, text) == "done 1\n"


def test_what_only_the_program_defines_is_refused_in_one_line(tmp_path):
    text = ended([sys.executable, "-"], tmp_path, DEFINES)
    assert text.count("\n") == 1
    assert "Mine" in text
    assert "move it to a module of its own" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "train --model small.yaml --data text --steps 2 --seq-len 32 --workers mlx:cpu --json",
        "research classic svm --size 200 --epochs 1 --workers 1 --json",
        "mad data --task M --task-set train_rows=600 --task-set test_rows=300 --output rows.npz",
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


def _outcome(folder):
    """What training gives in the process that calls this, and the runs that it leaves."""
    try:
        outcome = mlxhog.train(small_config(folder, steps=2), observer=None).status
    except mlxhog.MlxhogError as error:
        outcome = str(error)
    return outcome, [*folder.glob("runs/2*")]


@pytest.mark.slow
def test_a_daemonic_process_is_refused_before_a_run_with_the_executor_that_works(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(1) as pool:
        refused, left = pool.apply(_outcome, (tmp_path,))
    assert "ProcessPoolExecutor" in refused
    assert left == []
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        assert executor.submit(_outcome, tmp_path).result()[0] == "done"


@pytest.mark.slow
def test_no_folder_is_made_in_a_daemonic_process(tmp_path, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    monkeypatch.chdir(tmp_path)
    search = "mad bench --suite smoke --study s".split() + ["--layers", "mlstm swiglu"]
    for words in (["train"], search, ["compare", "tiny", "--b=--lr 2e-3"], ["parity", "tiny"]):
        assert cli.main(words) == 3, words
    assert [*tmp_path.iterdir()] == []


def test_a_process_that_ignores_how_its_children_end_is_refused_before_a_run(tmp_path):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        refused, left = _outcome(tmp_path)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "first call signal.signal(signal.SIGCHLD, signal.SIG_DFL)" in refused
    assert left == []


IGNORES = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_a_command_trains_where_its_launcher_ignores_how_children_end(tmp_path):
    config = small_config(tmp_path, steps=2)
    command = [os.fspath(MLXHOG), "train", "--json", *flags(config)]
    text = ended([sys.executable, "-c", IGNORES, *command], tmp_path)
    assert json.loads(text.splitlines()[-1])["status"] == "done"
