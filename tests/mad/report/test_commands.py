"""`mlxhog mad board` and `plot` through the real commands."""

import json
import shutil
from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.mad.study.store import Store
from tests.mad.report.sample import CONV, TASKS, study


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return study(tmp_path_factory.mktemp("studies"), tasks=TASKS[-1:])


@pytest.fixture(autouse=True)
def first(tmp_path, monkeypatch, whole):
    """A study in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    return Store(Path(shutil.copytree(whole.directory, Path("studies", "first"))))


@pytest.mark.parametrize("spec", ["first", "studies/first"])
def test_a_study_is_named_or_given_as_a_path_and_json_is_one_line(capsys, spec):
    assert main(["mad", "board", spec]) == 0
    assert CONV in capsys.readouterr().out
    assert main(["mad", "board", spec, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    best, *_ = json.loads(line)["candidates"]
    assert best.keys() >= {"layers", "score", "tasks", "params", "state", "seconds", "status"}
    assert best["layers"] == CONV


@pytest.mark.slow
def test_plot_writes_every_figure_and_the_page_and_names_them(capsys):
    assert main(["mad", "plot", "first", "--out", "figures", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    written = [*map(Path, output["plots"].values()), Path(output["page"])]
    assert written[-1] == Path("figures/index.html")
    assert {path.name for path in written} >= {f"curves-{TASKS[-1]}.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[:-1])
    assert written[-1].read_text().count("<figure") == len(written) - 1


def test_plots_lie_in_the_study_unless_told_otherwise(capsys):
    empty = study(Path("studies"), "empty", change=lambda record: None)
    assert main(["mad", "plot", "empty", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert Path(output["page"]).parent == empty.directory / "plots"
    assert Path(output["page"]).exists()
    assert output["plots"] == {}
