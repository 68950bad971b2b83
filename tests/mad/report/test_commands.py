"""`mlxhog mad board` and `mlxhog mad plot` through the real commands."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.mad.study.store import Store
from tests.mad.report.sample import CONV, TASKS, study


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return study(tmp_path_factory.mktemp("studies"))


@pytest.fixture
def first(whole):
    return Store(Path(shutil.copytree(whole.directory, Path("studies", "first"))))


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("spec", ["first", "studies/first"])
def test_a_study_is_named_or_given_as_a_path(capsys, spec):
    assert main(["mad", "board", spec]) == 0
    assert CONV in capsys.readouterr().out


@pytest.mark.usefixtures("first")
def test_json_is_one_line_with_every_candidate(capsys):
    assert main(["mad", "board", "first", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    best, *_ = json.loads(line)["candidates"]
    assert best.keys() >= {"layers", "score", "tasks", "params", "state", "seconds", "status"}
    assert best["layers"] == CONV


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frist"], "did you mean 'first'"),
        (["first", "--select", "val"], "no accuracy on validation rows"),
        (["first", "--select", "tset"], "did you mean 'test'"),
        (["first", "--jsn"], "did you mean '--json'"),
        ([], "STUDY"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(capsys, words, message):
    assert main(["mad", "board", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.mark.parametrize("command", ["board", "plot"])
def test_a_study_of_another_version_is_refused(capsys, first, command):
    path = first.directory / "study.yaml"
    path.write_text(path.read_text().replace("generator: 1", "generator: 0"))
    assert main(["mad", command, "first"]) == 2
    assert "was made by the tasks' generators 0" in capsys.readouterr().err


def test_a_study_that_runs_is_shown_as_running(capsys, first):
    with first.lock():
        assert main(["mad", "board", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["running"]


@pytest.mark.slow
def test_plot_writes_every_figure_and_the_page_and_names_them(capsys):
    study(Path("studies"), tasks=TASKS[-1:])
    assert main(["mad", "plot", "first", "--out", "figures", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    written = [*map(Path, output["plots"].values()), Path(output["page"])]
    assert written[-1] == Path("figures/index.html")
    assert {path.name for path in written} >= {f"curves-{TASKS[-1]}.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[:-1])
    assert written[-1].read_text().count("<figure") == len(written) - 1


def test_plots_lie_in_the_study_unless_told_otherwise(capsys):
    first = study(Path("studies"), change=lambda record: None)  # without a run, without figures
    assert main(["mad", "plot", "first", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert Path(output["page"]).parent == first.directory / "plots"
    assert Path(output["page"]).exists()
    assert output["plots"] == {}


@pytest.mark.usefixtures("first")
def test_without_matplotlib_plot_says_which_extra_has_it(capsys, monkeypatch):
    known = importlib.util.find_spec

    def without(name, package=None):
        return None if name == "matplotlib" else known(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert main(["mad", "plot", "first"]) == 3
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not Path("studies/first/plots").exists()
