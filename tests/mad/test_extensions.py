"""A user's Python file is loaded here and in worker processes, or refused with its line; a task."""

import json
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from mlxhog.cli import main
from mlxhog.errors import ConfigError
from mlxhog.mad.tasks import TASKS
from mlxhog.mad.tasks.dataset import read
from mlxhog.models.mad import extensions
from mlxhog.models.mad.extensions import Extension, load_extensions
from tests.mad.training.small_runs import small_run

PROGRAM = """
from __future__ import annotations
from dataclasses import dataclass
import sys

sys.executions = getattr(sys, "executions", 0) + 1

@dataclass(frozen=True)
class Size:
    n: int = 3

    def double(self) -> Size:
        return Size(2 * self.n)
"""


def write(path: Path, text: str = PROGRAM) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def double(size: object) -> object:
    return size.double()  # type: ignore[attr-defined]


def test_a_file_is_executed_once_and_its_module_returned(tmp_path):
    file = write(tmp_path / "sizes.py", PROGRAM + "COUNT = sys.executions\n")
    module = load_extensions(file)
    assert module.Size(2).double().n == 4
    assert load_extensions(str(file)) is module
    assert [each.path for each in extensions.loaded()][-1] == str(file)


def test_instances_of_its_classes_travel_to_a_spawned_process_and_back(tmp_path):
    size = load_extensions(write(tmp_path / "sizes.py")).Size(4)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(double, size).result(60) == size.double()


@pytest.mark.parametrize("change", [lambda file: write(file, "x = ("), Path.unlink])
def test_what_travels_does_not_depend_on_the_file_any_more(tmp_path, change):
    file = write(tmp_path / "sizes.py")
    size = load_extensions(file).Size(4)
    change(file)
    assert pickle.loads(pickle.dumps(size)) == size
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(double, size).result(60) == size.double()


def test_bytes_that_do_not_have_the_digest_are_not_executed(tmp_path):
    sent = pickle.dumps(load_extensions(write(tmp_path / "sizes.py")).Size())
    executed = sys.executions
    with pytest.raises(ConfigError, match=r"sizes\.py: what arrived of it is damaged"):
        pickle.loads(sent.replace(b"2 * self.n", b"3 * self.n"))
    assert sys.executions == executed


SUM = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.py,b.py", ["a.py", "b.py"]),
        ("/u/a, b/c.py", ["/u/a, b/c.py"]),
        (f"/a, b/c.py sha256:{SUM}, d,e.py", [f"/a, b/c.py sha256:{SUM}", "d,e.py"]),
        (Path("a.py,b.py"), ["a.py,b.py"]),
        ("a.py, ", ["a.py"]),
    ],
)
def test_a_comma_divides_files_only_behind_the_end_of_one(value, expected):
    assert extensions.texts(value) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = (\n", r"bad\.py, line 2: SyntaxError"),
        ("x = 1\nx / 0\n", r"bad\.py, line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", r"bad\.py, line 1: ModuleNotFoundError"),
    ],
)
def test_an_error_in_the_file_names_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_extensions(write(tmp_path / "bad.py", text))


def test_what_is_no_python_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.py: cannot read it: No such file"):
        load_extensions(tmp_path / "none.py")
    with pytest.raises(ConfigError, match=r"notes\.txt: not a Python file"):
        load_extensions(write(tmp_path / "notes.txt"))


# -- a task from a file ----------------------------------------------------------------------------


EXAMPLE = Path(__file__).parents[2] / "examples" / "my_task.py"
SMALL = ["--task", "reverse", "--tasks-from", str(EXAMPLE), "--set", "seq_len=9"]
CANDIDATE = ["--layers", "mlstm swiglu", "--dim", "16", "--steps", "4", "--json", "--quiet"]


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert main(["mad", *words]) == 0
    return json.loads(capsys.readouterr().out)


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
        replace(run, extensions=(Extension(path, digest),)).key()
        for path, digest in (("/a/task.py", "1"), ("/b/task.py", "1"), ("/a/task.py", "2"))
    ]
    assert keys[0] == keys[1]
    assert len({run.key(), *keys}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("register(", "("), "adds no task"),
        (('"reverse", "RV"', '"reverse", "CR"'), "has a name that is taken"),
        (('"reverse", "RV"', '"backwards", "BW"'), "give both the same name"),
        (("C = s.seq_len", "C = = s.seq_len"), "SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_adds_no_task_is_refused_with_the_reason(tmp_path, capsys, change, message):
    file = tmp_path / "task.py"
    file.write_text(EXAMPLE.read_text().replace(*change))
    words = ["mad", "data", "--tasks-from", str(file), "--task", "reverse", "--out", "x.npz"]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_tasks_of_the_benchmark_are_the_six_whatever_is_added():
    assert len(TASKS) == 6
