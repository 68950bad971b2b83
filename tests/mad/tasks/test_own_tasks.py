"""A task is one file: `--plugin` draws, trains on and lists it without touching the package."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.cli import main
from mlxhog.config.plugin_file import Plugin
from mlxhog.mad.tasks import BENCHMARK
from mlxhog.mad.tasks.dataset import read
from tests.mad.training.small_runs import small_run

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_task.py"
SMALL = ["--task", "reverse", "--plugin", str(EXAMPLE), "--set", "seq_len=9"]
CANDIDATE = ["--layers", "mlstm swiglu", "--dim", "16", "--steps", "4", "--json", "--quiet"]


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["mad", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_rows_of_the_example_are_the_same_for_any_number_of_processes(tmp_path, capsys):
    words = ["data", *SMALL, "--train-rows", "600", "--test-rows", "20", "--json"]
    json_of(capsys, *words, "--out", str(tmp_path / "one.npz"))
    json_of(capsys, *words, "--out", str(tmp_path / "two.npz"), "--processes", "2")
    one, two = (read(tmp_path / name) for name in ("one.npz", "two.npz"))
    np.testing.assert_array_equal(one.train_x, two.train_x)
    np.testing.assert_array_equal(one.train_x[:, :4], one.train_y[:, :4:-1])


@pytest.mark.parametrize("workers", ["torch:cpu", "mlx:cpu*2"])
def test_a_candidate_is_trained_on_the_example_by_one_worker_and_by_two(capsys, workers):
    rows = ["--set", "train_rows=256", "--set", "test_rows=32"]
    result = json_of(capsys, "train", *SMALL, *rows, *CANDIDATE, "--workers", workers)
    assert (result["task"], result["status"], result["steps"]) == ("reverse", "done", 4)


def test_the_key_of_a_run_changes_with_the_file_and_not_with_its_place():
    run = small_run()
    keys = [
        replace(run, plugins=(Plugin(path, digest),)).key()
        for path, digest in (("/a/task.py", "1"), ("/b/task.py", "1"), ("/a/task.py", "2"))
    ]
    assert keys[0] == keys[1]
    assert len({run.key(), *keys}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("REVERSE = ", ""), "adds nothing that can be chosen"),
        (('"reverse", "RV"', '"reverse", "CR"'), "has a name that is taken"),
        (('"reverse", "RV"', '"backwards", "BW"'), "give both the same name"),
        (("C = s.seq_len", "C = = s.seq_len"), "SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_adds_no_task_is_refused_with_the_reason(tmp_path, capsys, change, message):
    file = tmp_path / "task.py"
    file.write_text(EXAMPLE.read_text().replace(*change))
    words = ["mad", "data", "--plugin", str(file), "--task", "reverse", "--out", "x.npz"]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_tasks_of_the_benchmark_are_the_six_whatever_is_added():
    assert len(BENCHMARK) == 6
