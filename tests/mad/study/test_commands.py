"""`mlxhog mad search`, `bench` and `resume`, with runs of a few steps."""

import importlib.util
import re
import signal
from pathlib import Path

import pytest
import yaml

from mlxhog.cli import main
from mlxhog.mad.study.scheduler import Scheduler
from mlxhog.mad.study.store import Store
from tests.cli.command import told
from tests.mad.study import small
from tests.mad.study.small import ON_MLX, TINY, lines, table


@pytest.fixture(autouse=True)
def space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return small.space(tmp_path)


SEARCH = ("mad", "search", "--space", "space.yaml", *TINY, *ON_MLX)


def test_a_search_ends_with_its_runs_and_the_best_whatever_the_parallelism_and_runs_nothing_again(
    capsys, tmp_path
):
    first = told(capsys, *SEARCH, "--no-prune", "--parallel", "1")
    assert first["study"] == str(tmp_path / "studies" / "space")
    assert first["status"] == "done"
    assert first["runs"] == {"done": 4, "failed": 0, "pruned": 0, "diverged": 0}
    assert 0 <= first["best"]["score"] <= 1
    assert first["best"]["missing"] == 0
    store = Store(tmp_path / "studies" / "space")
    assert all(record.params > 0 and record.state > 0 for record in store.records())
    assert told(capsys, *SEARCH, "--no-prune")["best"] == first["best"]
    assert lines(store.directory) == 4
    told(capsys, *SEARCH, "--no-prune", "--parallel", "2", "--study", "two")
    other = Store(tmp_path / "studies" / "two")
    assert table(other) == table(store)
    for record in store.records():
        curves = [[point.loss for point in one.curve(record.key)] for one in (store, other)]
        assert curves[0] == curves[1]
        assert len(curves[0]) == 2


def test_a_budget_cuts_a_study_and_resume_completes_it(capsys):
    assert main([*SEARCH, "--study", "s", "--budget", "1", "--parallel", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search("status +the budget is used up\nruns +done 2, failed 0", text)
    assert "continue: mlxhog mad resume s --parallel 1" in text
    plan = told(capsys, "mad", "resume", "s", "--dry-run")
    assert (plan["runs"], plan["ended"], plan["steps"]) == (4, 2, 8)
    assert told(capsys, "mad", "resume", "s", "--quiet")["runs"]["done"] == 4


def test_a_large_space_with_bounds_is_searched_at_random_since_a_grid_may_find_nothing(
    space, capsys
):
    mixers = ["gla", *small.texts(4)]  # a grid begins with more sequences of gla gla than it tries
    keys = {"depth": 12, "mixers": mixers, "channels": ["swiglu", "mlp"], "max_count": {"gla": 1}}
    Path(space).write_text(yaml.safe_dump({"space": keys}))
    assert told(capsys, *SEARCH, "--budget", "1")["runs"]["done"] == 2
    assert main([*SEARCH, "--sampler", "grid", "--study", "g"]) == 2
    assert "begin a study with --sampler random" in " ".join(capsys.readouterr().err.split())
    assert not Path("studies/g").exists()


def test_bench_scores_given_architectures_and_finds_its_study_again(capsys):
    words = ("mad", "bench", "--layers", "gated-conv swiglu", "--layers", "gated-conv(kernel=2)")
    words = (*words, *TINY, *ON_MLX, "--seeds", "1,2")
    first = told(capsys, *words)
    assert first["runs"]["done"] == 8
    plan = told(capsys, *words, "--dry-run")
    assert (plan["ended"], plan["candidates"], plan["runs_each"]) == (8, 2, 4)
    assert first["study"].endswith(plan["study"])


def test_a_dry_run_says_runs_and_steps_and_makes_nothing(space, capsys, tmp_path):
    plan = told(capsys, "mad", "bench", "--layers", "swiglu", "--seeds", "7,", "--dry-run")
    assert plan["seeds"] == [7]
    plan = told(capsys, "mad", "search", "--space", space, "--suite", "full", "--dry-run")
    assert (plan["candidates"], plan["runs_each"], plan["runs"]) == (2, 396, 792)
    assert plan["steps"] > 2 * 396 * 1000
    assert not (tmp_path / "studies").exists()


def test_ctrl_c_ends_with_130_and_the_line_that_goes_on(capsys, monkeypatch):
    show = Scheduler._show

    def show_and_interrupt_again(scheduler, message=None):
        progress = show(scheduler, message)
        if message is not None:
            signal.raise_signal(signal.SIGINT)
        return progress

    monkeypatch.setattr("mlxhog.mad.study.session.train", small.interrupts)
    monkeypatch.setattr(Scheduler, "_show", show_and_interrupt_again)
    assert main([*SEARCH, "--parallel", "1"]) == 130
    output, errors = capsys.readouterr()
    assert "finishing 1 run; Ctrl-C again drops it" in errors
    assert re.search("status +interrupted\nruns +done 0, failed 0", output)
    assert "continue: mlxhog mad resume space" in output


def test_a_study_whose_runs_all_failed_has_no_best_and_ends_with_1(capsys, monkeypatch):
    monkeypatch.setattr("mlxhog.mad.study.session.train", small.raises)
    assert main([*SEARCH, "--study", "s"]) == 1
    output = capsys.readouterr().out
    assert "best" not in output
    assert "reasons in studies/s/runs.jsonl" in output
    assert told(capsys, "mad", "resume", "s", "--quiet", code=1)["best"] is None


def test_without_ray_the_command_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "mlxhog.mad.study.ray.importlib.util.find_spec",
        lambda name, find=importlib.util.find_spec: None if name == "ray" else find(name),
    )
    assert main([*SEARCH, "--executor", "ray"]) == 3
    assert "pip install ray" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()
