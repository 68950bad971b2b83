"""A task is one file: `--plugin` draws, trains on and lists it without touching the package."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.cli import main
from mlxhog.mad.study.store import Store
from mlxhog.mad.tasks.dataset import read
from tests.own_plugins import mlxhog, own_plugins

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_task.py"
SMALL = ["--task", "my_task", "--plugin", str(EXAMPLE), "--set", "seq_len=9"]
CANDIDATE = ["--layers", "mlstm swiglu", "--dim", "16", "--steps", "4", "--json", "--quiet"]


def json_of(capsys, *words):
    assert main(["mad", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_of_the_example_are_written(tmp_path, capsys):
    rows = ["--train-rows", "600", "--test-rows", "20", "--out", str(tmp_path / "one.npz")]
    json_of(capsys, "data", *SMALL, *rows, "--json")
    data = read(tmp_path / "one.npz")
    np.testing.assert_array_equal(data.train_x[:, :4], data.train_y[:, :4:-1])


@pytest.mark.parametrize("workers", ["torch:cpu", "mlx:cpu*2"])
def test_a_candidate_is_trained_on_the_example_by_one_worker_and_by_two(capsys, workers):
    rows = ["--set", "train_rows=256", "--set", "test_rows=32"]
    result = json_of(capsys, "train", *SMALL, *rows, *CANDIDATE, "--workers", workers)
    assert (result["task"], result["status"], result["steps"]) == ("my_task", "done", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name: ClassVar[str] = "my_task"', "other: int = 1"), "adds nothing that can be chosen"),
        (('= "MY"', '= "CR"'), "has a name that is taken"),
        (("C = self.seq_len", "C = = self.seq_len"), "SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_adds_no_task_is_refused_with_the_reason(tmp_path, capsys, change, message):
    file = edited(tmp_path / "task.py", change)
    words = ["mad", "data", "--plugin", str(file), "--task", "my_task", "--out", "x.npz"]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def edited(path, *changes):
    """Write the example with other text."""
    text = EXAMPLE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


PLAIN = ("seq_len: int = seq_len(17)\n", "seq_len: int = seq_len(17)\n    depth: int | None = 3\n")


def test_a_plain_field_of_the_settings_is_a_setting(tmp_path, capsys):
    file = edited(tmp_path / "plain.py", PLAIN)
    with own_plugins(forgets=True):
        assert main(["mad", "tasks", "--plugin", str(file)]) == 0
        assert "seq_len=17 depth=3" in capsys.readouterr().out
        words = ["data", "--plugin", str(file), "--task", "my_task", "--train-rows", "9"]
        for value, expected in (("4", 4), ("none", None)):
            out = tmp_path / f"{value}.npz"
            json_of(capsys, *words, "--set", f"depth={value}", "--out", str(out), "--json")
            assert read(out).meta["depth"] == expected
        assert main(["mad", *words, "--set", "depth=x", "--out", "x.npz"]) == 2
        assert "depth is 'x'; wanted a whole number, or none" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["depth: int", "depth: tuple = ()"])
def test_a_setting_that_cannot_be_set_is_refused_with_the_possible_types(tmp_path, capsys, field):
    file = edited(tmp_path / "plain.py", (PLAIN[0], f"{PLAIN[0]}    {field}\n"))
    with own_plugins(forgets=True):
        assert main(["mad", "tasks", "--plugin", str(file)]) == 2
    assert "setting depth of task 'my_task' needs a default and one of" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["search", "bench --layers gated-conv"])
def test_an_own_task_is_searched_and_benched_beside_those_of_a_suite(capsys, command):
    words = ["--plugin", str(EXAMPLE), "--tasks", "in-context-recall,my_task", "--steps", "20"]
    plan = json_of(capsys, *command.split(), *words, "--study", "t", "--dry-run", "--json")
    assert (plan["suite"], plan["runs_each"]) == ("smoke", 2)


@pytest.mark.slow
def test_a_study_remembers_the_file_of_its_task_and_resumes_in_another_process(tmp_path):
    file = edited(tmp_path / "my_task.py", ("vocab(16)", "vocab(8)"), ("seq_len(17)", "seq_len(9)"))
    words = ("--tasks", "my_task", "--layers", "gated-conv", "--dim", "8", "--steps", "2")
    begun = mlxhog(
        tmp_path, "mad", "bench", "--plugin", str(file), *words, "--study", "t", "--quiet"
    )
    assert begun.code == 0, begun.err
    (record,) = Store(tmp_path / "studies" / "t").records()
    assert (record.task, record.status) == ("my_task", "done")
    assert len(record.config["plugin"]) == 1
    resumed = mlxhog(tmp_path, "mad", "resume", "t", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out.splitlines()[-1])["runs"]["done"] == 1
