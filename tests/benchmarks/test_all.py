"""all.py: every script in a process of its own, failures shown, a page made of results only."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ENDS_WELL = """
import json
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


@pytest.fixture(scope="module")
def everything(load):
    return load("all")


@pytest.fixture
def inside(everything, tmp_path, monkeypatch):
    """A tree of its own with three scripts, the second of which fails."""
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    monkeypatch.setattr(everything, "commit", lambda: "abc")
    (tmp_path / "benchmarks").mkdir()
    texts = {"good": ENDS_WELL, "bad": FAILS, "last": ENDS_WELL.replace('"good"', '"last"')}
    for name, text in texts.items():
        (tmp_path / "benchmarks" / f"{name}.py").write_text(text)
    return [everything.Script(name, f"{name}.py", 1, 1) for name in texts]


def test_a_failed_script_is_shown_stops_no_other_and_is_run_again(
    everything, inside, tmp_path, capsys
):
    out = tmp_path / "results" / "quick"
    verdicts = everything.run_all(inside, "quick", out)
    assert (verdicts, everything.exit_code(verdicts)) == (["met", "failed", "met"], 4)
    assert "[2/3] python benchmarks/bad.py --quick" in capsys.readouterr().out
    assert (out / "good.txt").read_text() == "$ python benchmarks/good.py --quick\nworking\n"
    assert "the disk is on fire" in json.loads((out / "bad.json").read_text())["error"]
    page = everything.results_page(everything.read(out.parent, ("last", "good")), folder="results")
    assert page.index("## last") < page.index("## good") < page.index("## bad")
    for part in (
        r"| a \| b | b | **holds** |", "| 2 | 1.235 |", "A/A, serial: 1 (0.9 to 1.1, n 5).",
        "Settings: lr serial: 0.001; searched a, b.",
        "**Failed**: exit code 1: ValueError: the disk is on fire",
        "| ratio | 1.1 (0.9 to 1.3, n 5) | >= 1 | **cannot be told** |",
    ):  # fmt: skip
        assert part in page
    before = (out / "good.json").read_bytes()
    everything.run_all(inside, "quick", out)
    assert (out / "good.json").read_bytes() == before  # kept, and so are its seconds
    ats = ("abc", "abd", "abc+", None)
    assert [everything.finished("good", "quick", out, at) for at in ats] == [True, *[False] * 3]
    assert not everything.finished("bad", "quick", out, "abc")


def test_a_script_that_hangs_is_ended_with_what_it_started(everything, inside, tmp_path):
    text = "import subprocess\nsubprocess.run(['sleep', '3600'])\n"  # which holds its pipe open
    (tmp_path / "benchmarks" / "good.py").write_text(text)
    hangs = everything.run(inside[0], "quick", tmp_path, "abc", limit_s=0.4)
    assert "it was ended after 0.4 s" in hangs["error"]


def test_a_result_of_another_commit_is_a_failure(everything, inside, tmp_path):
    assert everything.run(inside[0], "quick", tmp_path, "abd")["error"].startswith(
        "it began at commit abd and ended at abc"
    )


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (("met", "no_limit"), 0),
        (("met", "missed", "cannot_be_told"), 1),
        (("met", "cannot_be_told"), 3),
        (("missed", "failed"), 4),
    ],
)
def test_the_exit_code_says_what_was_missed(everything, verdicts, code):
    assert everything.exit_code(verdicts) == code


def test_quick_is_half_an_hour_full_four_and_every_experiment_is_in_the_table(everything):
    table = everything.TABLE
    assert sum(one.quick_s or 0 for one in table) <= 1800
    assert sum(one.full_s for one in table) <= 14_400
    known = {one.script.split()[0] for one in table}
    files = {f"experiments/{path.name}" for path in (BENCHMARKS / "experiments").glob("*.py")}
    assert files == {name for name in known if name.startswith("experiments/")}
    assert all((BENCHMARKS / name).exists() for name in known)


@pytest.mark.parametrize("name", ["staleness", "schemes", "scaling"])
def test_every_recorded_setting_of_a_mode_exists(load, name):
    for mode in ("quick", "full"):
        assert load(name).settings(load("experiment.record").Scale(mode))


def test_an_experiment_that_there_is_not_is_refused_with_those_there_are(everything, capsys):
    with pytest.raises(SystemExit) as end:
        everything.main(["--quick", "--only", "stailness"])
    assert end.value.code == 2
    assert "no script stailness with --quick; there are paper_tables" in capsys.readouterr().err
