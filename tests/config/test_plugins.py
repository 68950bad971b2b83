"""A Python file of a user's own is executed here and in worker processes, and adds choices."""

import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from multiprocessing import get_context
from operator import methodcaller
from pathlib import Path

import pytest

from mlxhog.config import plugins
from mlxhog.config.components import SCHEDULES
from mlxhog.config.config import TrainConfig, train_config
from mlxhog.config.sources import read_yaml
from mlxhog.errors import ConfigError
from tests.pairs import each_of

PROGRAM = """
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar
import sys

from mlxhog.config.components import SCHEDULES, Component, ComponentRegistry
from mlxhog.config.options import option

sys.executions = getattr(sys, "executions", 0) + 1

@dataclass(frozen=True, kw_only=True)
class Halving(Component):
    registry: ClassVar[ComponentRegistry] = SCHEDULES
    name: ClassVar[str] = "halving"
    every: int = option(3, "steps", low=1)

    def double(self) -> Halving:
        return Halving(every=2 * self.every)

class Unit(Enum):
    STEP = 1

@dataclass(frozen=True, slots=True)
class Place:
    n: int = 2
"""


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Leave the schedules of other tests as they are."""
    monkeypatch.setattr(SCHEDULES, "_by_name", dict(SCHEDULES.known()))


def write(path, text=PROGRAM):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_executed_once_and_what_it_defines_is_registered(tmp_path):
    file = write(tmp_path / "mine.py")
    executed = getattr(sys, "executions", 0)
    module = plugins.load(file)
    assert plugins.load(str(file)) is module
    assert sys.executions == executed + 1
    assert [each.path for each in plugins.loaded()][-1] == str(file)
    assert SCHEDULES.find("halving") is module.Halving


def test_what_a_file_defines_travels_to_a_spawned_process_and_back_without_it(tmp_path):
    file = write(tmp_path / "mine.py")
    module = plugins.load(file)
    (plugin,) = plugins.files_of([module.Halving])
    things = (module.Halving(every=4), module.Place(5), module.Unit.STEP, (plugin, module.Place))
    for change in (lambda file: write(file, "x = ("), Path.unlink):
        change(file)
        assert pickle.loads(pickle.dumps(things[0])) == things[0]
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            doubled = pool.submit(methodcaller("double"), things[0])
            assert doubled.result(120) == module.Halving(every=8)
            for thing in things:
                assert pool.submit(copy, thing).result(120) == thing


def test_a_comma_divides_files_only_behind_the_end_of_one():
    pinned = f"/a, b/c.py sha256:{'0123456789abcdef' * 4}"
    assert plugins.texts(f"{pinned}, d,e.py, ") == [pinned, "d,e.py"]
    assert plugins.texts(Path("a.py,b.py")) == ["a.py,b.py"]
    assert plugins.texts([Path("a.py"), "b.py"]) == ["a.py", "b.py"]


def test_an_edited_file_and_a_copy_replace_what_was_loaded_and_another_file_may_not(tmp_path):
    file = write(tmp_path / "mine.py")
    first = plugins.load(file).Halving(every=4)
    for one in (file, tmp_path / "copy.py"):
        write(one, f"{PROGRAM}\n# edited\n")
    for one in (file, tmp_path / "copy.py", file):
        module = plugins.load(one)
        assert SCHEDULES.find("halving") is module.Halving
        assert not isinstance(first, module.Halving)
    assert pickle.loads(pickle.dumps(first)) == first
    with pytest.raises(ConfigError, match="class Halving: there is a schedule 'halving' already"):
        plugins.load(write(tmp_path / "another.py", f"{PROGRAM}\n# another\n"))


def test_a_configuration_loads_the_files_it_names_and_none_that_only_yaml_names(tmp_path):
    file, executed = write(tmp_path / "mine.py", f"{PROGRAM}\n# own\n"), sys.executions
    (tmp_path / "conf.yaml").write_text(f"schedule: halving\nplugin: [{file}]\n")
    with pytest.raises(ConfigError, match="you have never named that file"):
        train_config([read_yaml(tmp_path / "conf.yaml")])
    assert sys.executions == executed
    config = TrainConfig(plugin=[file], schedule="halving(every=4)")
    assert (config.plugin, config.schedule.every) == (str(file), 4)
    assert train_config([read_yaml(tmp_path / "conf.yaml")]).schedule.every == 3
    with pytest.raises(ConfigError, match="no schedule 'halfing'"):
        TrainConfig(plugin=file, schedule="halfing")


DECORATOR = "@dataclass(frozen=True, kw_only=True)"


@each_of(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1\ny = (\n", r"a\.py, line 2: SyntaxError"),
        ("a.py", "x = 1\nx / 0\n", r"a\.py, line 2: ZeroDivisionError: division by zero"),
        ("a.py", "x = 1\n", "adds nothing that can be chosen"),
        ("a.py", PROGRAM.replace("halving", "a b"), "class Halving: its name is 'a b'; use a"),
        ("a.py", PROGRAM.replace(DECORATOR, "@dataclass"), "class Halving: put @dataclass.*"),
        ("none.py", None, r"none\.py: cannot read it: No such file"),
        ("notes.txt", PROGRAM, r"notes\.txt: not a Python file"),
    ],
)
def test_a_file_without_a_proper_component_is_refused_with_the_place(tmp_path, name, text, message):
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=message):
        plugins.load(tmp_path / name)
