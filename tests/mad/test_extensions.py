"""A user's Python file is loaded here and in worker processes, or refused with its line."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mlxhog.errors import ConfigError
from mlxhog.mad import extensions
from mlxhog.mad.extensions import load_extensions

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


def test_a_file_that_changed_is_refused_where_its_objects_arrive(tmp_path):
    file = write(tmp_path / "sizes.py")
    sent = pickle.dumps(load_extensions(file).Size())
    assert pickle.loads(sent).n == 3
    write(file, PROGRAM + "# changed\n")
    with pytest.raises(ConfigError, match=r"sizes\.py has changed since it was loaded"):
        pickle.loads(sent)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = (\n", r"bad\.py, line 2: SyntaxError"),
        ("x = 1\nx / 0\n", r"bad\.py, line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", r"bad\.py, line 1: ModuleNotFoundError"),
    ],
)
def test_an_error_in_the_file_names_its_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_extensions(write(tmp_path / "bad.py", text))


def test_what_is_no_python_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.py: cannot read it: No such file"):
        load_extensions(tmp_path / "none.py")
    with pytest.raises(ConfigError, match=r"notes\.txt: not a Python file"):
        load_extensions(write(tmp_path / "notes.txt"))
