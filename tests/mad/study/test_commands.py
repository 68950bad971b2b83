"""`mlxhog mad search`, `bench` and `resume`, with runs of a few steps."""

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from mlxhog.cli import main
from mlxhog.mad.study.store import Store
from tests.mad.study import small
from tests.mad.study.small import ON_MLX, TINY, assert_same_studies, table
from tests.mad.study.test_scheduler import ROOT, lines
from tests.processes import alive, workers_of
from tests.threads import wait_until


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def space(tmp_path):
    return small.space(tmp_path)


def said(capsys):
    """The last line on stdout, which is one JSON object."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_search_ends_with_its_runs_and_the_best_and_the_same_line_runs_nothing_again(
    space, capsys, tmp_path
):
    command = ["mad", "search", "--space", space, *TINY, *ON_MLX, "--no-prune", "--json"]
    assert main(command) == 0
    first = said(capsys)
    assert first["study"] == str(tmp_path / "studies" / "space")
    assert first["status"] == "done"
    assert first["runs"] == {"done": 4, "failed": 0, "pruned": 0, "diverged": 0}
    assert 0 <= first["best"]["score"] <= 1
    assert first["best"]["missing"] == 0
    store = Store(tmp_path / "studies" / "space")
    assert all(record.params > 0 and record.state > 0 for record in store.records())
    assert all(len(store.curve(record.key)) == 2 for record in store.records())
    before = table(store)
    assert main(command) == 0
    assert said(capsys)["best"] == first["best"]
    assert table(store) == before
    assert lines(store.directory) == 4


def test_a_budget_cuts_a_study_and_resume_completes_it(space, capsys, tmp_path):
    search = ["mad", "search", "--space", space, *TINY, *ON_MLX, "--study", "s"]
    assert main([*search, "--budget", "1", "--parallel", "1"]) == 0
    text = capsys.readouterr().out
    assert "the budget is used up: 1 runs have ended (1 done)" in text
    assert "continue: mlxhog mad resume s --parallel 1" in text
    assert main(["mad", "resume", "s", "--dry-run", "--json"]) == 0
    plan = said(capsys)
    assert (plan["runs"], plan["ended"], plan["steps"]) == (4, 1, 12)
    assert main(["mad", "resume", "s", "--json", "--quiet"]) == 0
    assert said(capsys)["runs"]["done"] == 4


def test_scores_are_the_same_whatever_the_parallelism(space, tmp_path):
    search = ["mad", "search", "--space", space, *TINY, *ON_MLX, "--no-prune"]
    for parallel in ("1", "2"):
        assert main([*search, "--study", parallel, "--parallel", parallel]) == 0
    assert_same_studies(*(Store(tmp_path / "studies" / parallel) for parallel in ("1", "2")))


def test_bench_scores_given_architectures_and_finds_its_study_again(capsys):
    words = ["mad", "bench", "--layers", "gated-conv swiglu", "--layers", "gated-conv(kernel=2)"]
    command = [*words, *TINY, *ON_MLX, "--seeds", "1,2", "--json"]
    assert main(command) == 0
    first = said(capsys)
    assert first["runs"]["done"] == 8
    assert main([*command[:-1], "--dry-run", "--json"]) == 0
    plan = said(capsys)
    assert (plan["ended"], plan["candidates"], plan["runs_each"]) == (8, 2, 4)
    assert plan["estimated_seconds"] == 0  # all runs have ended
    assert first["study"].endswith(plan["study"])


def test_a_dry_run_says_runs_and_steps_and_makes_nothing(space, capsys, tmp_path):
    assert main(["mad", "bench", "--layers", "swiglu", "--seed", "7", "--dry-run", "--json"]) == 0
    assert said(capsys)["seeds"] == [7]
    assert main(["mad", "search", "--space", space, "--suite", "full", "--dry-run", "--json"]) == 0
    plan = said(capsys)
    assert (plan["candidates"], plan["runs_each"], plan["runs"]) == (2, 396, 792)
    assert plan["steps"] > 2 * 396 * 1000
    assert plan["estimated_seconds"] is None
    assert not (tmp_path / "studies").exists()


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_line_that_goes_on(space, tmp_path):
    long = [*TINY[:2], "--steps", "100000", "--eval-every", "2", *TINY[6:]]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxhog", "mad", "search", "--space", space, *long, *ON_MLX],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        workers = wait_until(lambda: workers_of(process.pid))
        process.terminate()
        while "finishing 1 run; Ctrl-C again drops it" not in process.stderr.readline():
            pass
        process.terminate()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert "interrupted: 0 runs have ended (none)" in output
    assert "continue: mlxhog mad resume space" in output
    assert workers
    assert not any(map(alive, workers))


def test_a_study_whose_runs_all_failed_has_no_best_and_ends_with_1(space, capsys, monkeypatch):
    monkeypatch.setattr("mlxhog.mad.study.session.train", small.raises)
    assert main(["mad", "search", "--space", space, *TINY, "--study", "s"]) == 1
    output = capsys.readouterr().out
    assert "best:" not in output
    assert "reasons in studies/s/runs.jsonl" in output
    assert main(["mad", "resume", "s", "--json", "--quiet"]) == 1
    assert said(capsys)["best"] is None


def test_a_bench_with_other_rates_is_another_study(capsys):
    bench = ["mad", "bench", "--layers", "swiglu", *TINY, *ON_MLX, "--study", "s", "--budget", "1"]
    assert main([*bench, "--rates", "1e-3,2e-3"]) == 0
    assert main([*bench, "--rates", "1e-3,4e-3"]) == 2
    assert "rates: it has [0.001, 0.002], the command [0.001, 0.004]" in capsys.readouterr().err


def test_without_ray_the_command_says_what_to_install(space, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "mlxhog.mad.study.ray.importlib.util.find_spec",
        lambda name, find=importlib.util.find_spec: None if name == "ray" else find(name),
    )
    assert main(["mad", "search", "--space", space, *TINY, "--executor", "ray"]) == 3
    assert "pip install ray" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()
