"""all.py: every script in a process of its own, failures shown, a page made of results only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pairs import each_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def everything(load: Any) -> Any:
    return load("all")


def script(everything: Any, folder: Path, name: str, text: str) -> Any:
    path = folder / f"{name}.py"
    path.write_text(text)
    return everything.Script(name, path, ("--tiny",))


ENDS_WELL = """
import json, sys
print("working")
print(json.dumps({"experiment": "good", "verdict": "met", "others_load": 0.0, "command": "x",
    "compared": [{"claim": "a | b", "measured": "b", "verdict": "holds"}],
    "table": [{"workers": 2, "loss": 1.23456}],
    "claims": [{"name": "ratio", "value": 1.1, "relation": ">=", "limit": 1.0, "met": False,
                "ended": "cannot_be_told", "interval": [0.9, 1.3], "n": 5}],
    "twins": {"comparisons": [{"name": "serial", "value": 1.0, "low": 0.9, "high": 1.1, "n": 5}],
              "false_verdicts": 0}, "commit": "abc",
    "settings": {"lr": {"serial": 0.001}, "searched": ["a", "b"]}}))
"""
FAILS = "print('working')\nraise ValueError('the disk is on fire')\n"


@pytest.fixture
def inside(everything: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tree of its own with three scripts, the second of which fails."""
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    monkeypatch.setattr(everything, "commit", lambda: "abc")
    texts = {"good": ENDS_WELL, "bad": FAILS, "last": ENDS_WELL.replace('"good"', '"last"')}
    return [script(everything, tmp_path, name, text) for name, text in texts.items()]


def test_a_script_that_fails_is_shown_and_does_not_stop_the_others(
    everything: Any, inside: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "tiny"
    out.mkdir(parents=True)
    ends = everything.run_all(inside, "tiny", out)
    assert everything.exit_code(ends) == 4
    printed = capsys.readouterr().out
    assert "failed: bad" in printed
    assert "A/A: 0 false verdicts in 2 comparisons" in printed
    assert (out / "good.txt").read_text().startswith("$ python good.py --tiny\nworking")
    assert "[2/3]" in printed
    assert "to go" in printed
    assert "ValueError: the disk is on fire" in printed
    assert {path.stem for path in out.glob("*.json")} == {"good", "bad", "last"}
    bad = json.loads((out / "bad.json").read_text())
    assert bad["verdict"] == "failed"
    assert "the disk is on fire" in bad["error"]


def test_a_script_that_hangs_is_ended_with_what_it_started(
    everything: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    monkeypatch.setattr(everything, "LEAST_LIMIT_S", 0.1)
    text = "import subprocess\nsubprocess.run(['sleep', '3600'])\n"  # which holds its pipe open
    hangs = everything.Script("hangs", tmp_path / "hangs.py", (), expected_s=0.1)
    hangs.path.write_text(text)
    result = everything.run(hangs, "tiny", tmp_path, "abc")
    assert result["verdict"] == "failed"
    assert "it was ended after 0.4 s; it states 0.1 s" in result["error"]


def test_the_page_shows_claims_measurements_and_failures_of_the_results(
    everything: Any, inside: Any, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "tiny"
    out.mkdir(parents=True)
    everything.run_all(inside, "tiny", out)
    page = everything.results_page(everything.read(out.parent, ("last", "good")), folder="results")
    assert page.index("## last") < page.index("## good") < page.index("## bad")
    assert r"| a \| b | b | **holds** |" in page
    assert "| 2 | 1.235 |" in page
    assert "Settings: lr serial: 0.001; searched a, b." in page
    assert "**Failed**: exit code 1: ValueError: the disk is on fire" in page
    assert "the numbers mean nothing" in page
    assert "| ratio | 1.1 (0.9 to 1.3, n 5) | >= 1 | **cannot be told** |" in page
    assert "A/A, serial: 1 (0.9 to 1.1, n 5)." in page
    page = everything.results_page([], folder="results", expected=["density"])
    assert "Without a result: density." in page


def test_results_of_a_test_run_never_stand_beside_measurements(
    everything: Any, tmp_path: Path
) -> None:
    for mode, name in (("tiny", "one"), ("quick", "two")):
        (tmp_path / mode).mkdir()
        text = json.dumps({"experiment": name, "verdict": "met", "mode": mode})
        (tmp_path / mode / f"{name}.json").write_text(text)
    assert [one["experiment"] for one in everything.read(tmp_path)] == ["two"]


@each_of(
    ("verdicts", "code"),
    [
        (("met", "no_limit"), 0),
        (("met", "missed", "cannot_be_told"), 1),
        (("met", "cannot_be_told"), 3),
        (("not_measurable",), 3),
        (("missed", "failed"), 4),
    ],
)
def test_the_exit_code_says_what_was_missed(
    everything: Any, verdicts: tuple[str, ...], code: int
) -> None:
    ends = {f"{k}": {"verdict": verdict} for k, verdict in enumerate(verdicts)}
    assert everything.exit_code(ends) == code


def test_a_run_continues_after_the_scripts_of_its_commit_and_mode(
    everything: Any, inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, _ = inside
    everything.run_all(inside, "tiny", tmp_path)
    before = (tmp_path / "good.json").read_bytes()
    everything.run_all(inside, "tiny", tmp_path)
    assert (tmp_path / "good.json").read_bytes() == before  # kept, and so are its seconds
    kept = [everything.finished(good, "tiny", tmp_path, at) for at in ("abc", "abd", "abc+", None)]
    assert kept == [True, False, False, False]
    assert not everything.finished(good, "full", tmp_path, "abc")
    assert not everything.finished(bad, "tiny", tmp_path, "abc")  # it failed


def test_a_result_that_a_busy_machine_disturbed_is_measured_again(
    everything: Any, inside: Any, tmp_path: Path
) -> None:
    last = {"experiment": "good", "verdict": "not_measurable", "mode": "tiny", "commit": "abc"}
    (tmp_path / "good.json").write_text(json.dumps(last))
    assert not everything.finished(inside[0], "tiny", tmp_path, "abc")


def test_a_checkout_that_changes_meanwhile_ends_the_run_and_its_script_has_failed(
    everything: Any, inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = iter(["abd", "abd", "abc"])
    monkeypatch.setattr(everything, "commit", lambda: next(at))
    with pytest.raises(SystemExit, match="was at abd and is at abc"):
        everything.run_all(inside, "tiny", tmp_path)
    good = json.loads((tmp_path / "good.json").read_text())
    assert "began at commit abd and ended at abc" in good["error"]


def test_a_result_without_a_number_is_listed_as_missed(
    everything: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = {"name": "ratio", "value": None, "relation": ">=", "limit": 1.0, "ended": "missed"}
    everything._summarise({"one": {"verdict": "missed", "claims": [claim]}})
    assert "missed in one: ratio: nan" in capsys.readouterr().out


def test_a_folder_of_results_has_one_run_at_a_time(everything: Any, tmp_path: Path) -> None:
    lock = everything.take_alone(tmp_path)
    with pytest.raises(SystemExit, match="still works"):
        everything.take_alone(tmp_path)
    everything.os.close(lock)
    everything.os.close(everything.take_alone(tmp_path))


def test_quick_is_half_an_hour_of_what_every_script_states(everything: Any) -> None:
    quick = everything.scripts("quick")
    experiments = {path.stem for path in (BENCHMARKS / "experiments").glob("*.py")}
    # No claims of the documents; of the last one a schedule takes more than minutes.
    left_out = {"widths", "ngram_tables", "minute", "lock_free_schedules"}
    assert experiments - {script.name for script in quick} == left_out
    assert sum(script.expected_s for script in quick) <= 1800


def test_full_is_four_hours_of_what_every_script_states(everything: Any) -> None:
    assert sum(script.expected_s for script in everything.scripts("full")) <= 14_400


def test_every_experiment_states_the_time_of_full(everything: Any) -> None:
    for path in (BENCHMARKS / "experiments").glob("*.py"):
        assert "full_s" in everything.budget(path), path.stem


@pytest.mark.parametrize("name", ["staleness", "schemes", "scaling", "lock_free_schedules"])
def test_every_recorded_setting_of_a_mode_exists(load: Any, name: str) -> None:
    for mode in ("quick", "full"):
        assert load(name).settings(load("experiment.record").Scale(mode))


def test_the_next_estimate_is_the_last_runs_time(
    everything: Any, inside: Any, tmp_path: Path
) -> None:
    known = {"experiment": "good", "verdict": "met", "mode": "tiny", "seconds": 123.0}
    (tmp_path / "good.json").write_text(json.dumps(known))
    assert everything.expected_s(inside[0], "tiny", tmp_path) == 123.0
    assert everything.expected_s(inside[0], "full", tmp_path) != 123.0


def test_an_experiment_that_there_is_not_is_refused_with_those_there_are() -> None:
    command = [sys.executable, str(BENCHMARKS / "all.py"), "--tiny", "--only", "stailness"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "no script stailness with --tiny" in process.stderr
    assert "staleness" in process.stderr


@pytest.mark.slow
def test_an_experiment_runs_and_ends_on_the_page(tmp_path: Path) -> None:
    out = tmp_path / "results"
    command = [sys.executable, str(BENCHMARKS / "all.py"), "--tiny", "--out", str(out)]
    command += ["--only", "linear_regression"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode in (0, 1, 3), process.stdout + process.stderr
    page = (tmp_path / "RESULTS.md").read_text()
    document = json.loads((out / "tiny" / "linear_regression.json").read_text())
    assert document["mode"] == "tiny"
    assert document["compared"]
    assert document["table"]
    assert "python benchmarks/experiments/linear_regression.py --tiny" in page


@pytest.mark.slow
def test_what_one_worker_takes_here_predicts_two(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling = load("scaling")
    monkeypatch.setattr(scaling, "workers", lambda n, _: f"mlx:cpu*{n}")  # they start soon
    arguments = ["--tiny", "--out", str(tmp_path)]
    run, codes = load("experiment.record").run, load("harness.claims").EXIT_CODES
    code = run(scaling.ABOUT, scaling.result, scaling.draw, arguments=arguments)
    assert code in codes.values()  # this machine may have other work, and times are none's promise
    document = json.loads((tmp_path / "scaling.json").read_text())
    (prediction,) = document["results"]["predictions"]
    assert {"costs_s", "updates", "two_tokens_per_s", "two_speedup"} <= prediction.keys()
    assert list(prediction["updates"].values())[0] > 0
