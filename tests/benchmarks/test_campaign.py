"""A campaign: it continues where it was killed, refuses another setup, and waits for quiet."""

import json
import os

import all as everything
import numpy as np
import pytest
from harness import campaign, machine

from tests.pairs import each_of
from tests.processes import python

RESULT = """
import json, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--output") + 1])
def write(verdict):
    line = {"verdict": verdict, "others_load": 0.5, "written": str(sys.argv)}
    (out / (Path(sys.argv[0]).stem + ".json")).write_text(json.dumps(line))
"""
KEEPS = """
kept = Path(sys.argv[sys.argv.index("--keep") + 1])
known = kept.read_text() if kept.exists() else ""
kept.write_text(known + "a run\\n")
"""


SETUP = {"commit": "89abcde", "processor": "6502", "cores": 2, "package numpy": "2.0"}
PLAN = {"one": [{"name": "a / b", "expected": ">= 1", "n": 5, "pairs": 9}]}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Call all.py with scripts of this test: their texts by name; returns code and FILE."""
    results, file = tmp_path / "results", tmp_path / "campaign.json"
    results.mkdir()
    monkeypatch.setattr(everything, "RESULTS", results)
    monkeypatch.setattr(everything, "pages", lambda folder: {})
    monkeypatch.setattr(everything, "mark_stale", lambda folder: None)
    monkeypatch.setattr(everything, "not_this_commit", lambda: "")
    monkeypatch.setattr(campaign, "setup", SETUP.copy)
    monkeypatch.setattr(campaign, "planned", lambda results: PLAN)
    monkeypatch.setattr(campaign, "pin", lambda *cores: True)
    monkeypatch.setattr(campaign, "wait_until_quiet", lambda patience_s: 0.0)

    def call(*words, **texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(RESULT + text)
        table = [
            everything.Script(name, 7200, "--full", keep="--keep" * ("KEEPS" in text))
            for name, text in texts.items()
        ]
        monkeypatch.setattr(everything, "TABLE", table)
        code = everything.main(["--full", "--campaign", str(file), *words])
        return code, json.loads(file.read_text())

    call.file = file
    return call


def test_a_killed_campaign_continues_at_its_script_and_inside_it(measured, monkeypatch):
    fails_once = KEEPS + 'if not known: raise ValueError("the lights went out")\nwrite("supported")'
    scripts = {"quick_one": 'write("supported")', "long_one": f"# KEEPS\n{fails_once}",
               "last": 'write("inconclusive")\nraise SystemExit(3)'}  # fmt: skip
    run = everything.run

    def killed(words, **how):
        if words[0] == "last.py":
            raise KeyboardInterrupt
        return run(words, **how)

    monkeypatch.setattr(everything, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(**scripts)
    monkeypatch.setattr(everything, "run", run)
    code, known = measured(**scripts)
    assert code == 3
    assert known["left"] == {}
    runs = [(one["script"], one.get("code"), one.get("verdicts")) for one in known["runs"]]
    assert runs == [
        ("quick_one", 0, {"quick_one": "supported"}), ("long_one", 4, {}), ("last", None, None),
        ("long_one", 0, {"long_one": "supported"}), ("last", 3, {"last": "inconclusive"}),
    ]  # fmt: skip
    assert measured(**scripts) == (0, known)  # nothing is left to measure


def test_what_others_spoilt_is_measured_anew_and_not_from_what_it_kept(measured, tmp_path):
    text = KEEPS + 'write("supported" if len(sys.argv) > 9 else "not_measured")'
    _, known = measured(busy=f"# KEEPS\n{text}")
    assert known["left"] == {"busy": 7200}
    assert known["runs"][0]["load_meanwhile"] == {"busy": 0.5}
    measured(busy=f"# KEEPS\n{text}")
    kept = sorted((tmp_path / "campaign.kept").glob("busy-*"))
    assert [path.read_text() for path in kept] == ["a run\n"] * 2


@each_of(("what", "before", "sentence"), [
    ("commit", "0123abc", "was begun with commit 0123abc, here it is 89abcde; return to that"),
    ("processor", "Z80", "was begun with processor Z80, here it is 6502; return to that"),
    ("cores", 16, "was begun with cores 16, here it is 2; return to that"),
    ("package numpy", "1.9", "was begun with package numpy 1.9, here it is 2.0; return to that"),
    ("package gone", "1.0", "was begun with package gone 1.0, here it is None; return to that"),
])  # fmt: skip
def test_a_campaign_of_another_setup_is_refused(measured, capsys, what, before, sentence):
    _, known = measured(one="raise ValueError")
    measured.file.write_text(json.dumps(known | {"begun": known["begun"] | {what: before}}))
    with pytest.raises(SystemExit) as end:
        measured(one='write("supported")')
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    measured.file.write_text(json.dumps(known))
    assert len(measured(one="raise ValueError")[1]["runs"]) == len(known["runs"]) + 1


def test_a_file_of_something_else_is_refused_and_left_alone(measured, capsys):
    for text in ("[]", '{"verdict": "supported"}', "{"):
        measured.file.write_text(text)
        with pytest.raises(SystemExit) as end:
            measured(one='write("supported")')
        assert end.value.code == 2
        assert "campaign.json is not the file of a campaign" in capsys.readouterr().err
        assert measured.file.read_text() == text


def test_others_are_waited_for_and_their_load_is_recorded(measured, monkeypatch, capsys):
    loads = [0.5, 0.05, 0.7, 0.6, 0.0]
    monkeypatch.setattr(campaign, "wait_until_quiet", lambda patience_s: loads.pop(0))
    _, known = measured(a='write("supported")', b='write("supported")', c='write("supported")')
    assert [one["load_before"] for one in known["runs"]] == [0.05, 0.6, 0.0]
    printed = capsys.readouterr().out
    assert "others use 0.50 cores: waiting" in printed
    assert "others still use 0.60 cores: timings may not count" in printed
    assert printed.count("waiting") == 2


def test_its_status_is_what_is_left_by_the_seconds_of_the_table(measured, capsys):
    with pytest.raises(SystemExit) as end:
        measured("--status", one='write("supported")')
    assert end.value.code == 2
    assert "campaign.json does not exist; without --status it is begun" in capsys.readouterr().err
    scripts = {"one": 'write("supported")', "two": "raise ValueError", "three": ""}
    measured("--only", "one", "two", **scripts)
    capsys.readouterr()
    code, known = measured("--status", **scripts)
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line.split()[:2] for line in lines[:3]] == [["done", "one"], ["left", "two"],
                                                        ["left", "three"]]  # fmt: skip
    assert "exit code 4" in lines[1]
    assert lines[-2] == "1 of 1 planned comparisons had fewer pairs than decide them"
    assert lines[-1] == "2 of 3 scripts are left: 4.0 h on idle cores"
    assert known["left"] == {"two": 7200, "three": 7200}


def test_a_script_that_outlived_its_campaign_ends_before_the_next_one_begins(measured, capsys):
    first = campaign.Campaign(measured.file, [])
    with first.begin(everything.RESULTS):
        inherited = os.dup(first.lock.fileno())
    with pytest.raises(SystemExit):
        measured(one='write("supported")')
    assert "is in use by this campaign or a script that outlived it" in capsys.readouterr().err
    os.close(inherited)
    assert measured(one='write("supported")')[0] == 0


def test_planned_comparisons_have_their_recorded_n_and_the_pairs_that_decide_them():
    plan = campaign.planned(everything.RESULTS)
    for name in ("schemes", "late_workers"):
        claims = json.loads((everything.RESULTS / f"{name}.json").read_text())["claims"]
        recorded = {one["name"]: one["n"] for one in claims}
        assert len(plan[name]) == 4
        assert all(one["n"] == recorded[one["name"]] for one in plan[name])
    pairs = [one["pairs"] for planned in plan.values() for one in planned]
    assert min(filter(None, pairs)) == 5
    assert max(filter(None, pairs)) > 100


def test_the_setup_has_the_commit_the_machine_and_every_package():
    setup = campaign.setup()
    assert setup["commit"] == machine.commit()
    assert setup["cores"] == len(machine.cores())
    assert setup["processor"] == machine.machine()["cpu"]
    assert setup["package numpy"] == np.__version__
    assert "package mlxhog" in setup


def test_pinned_processes_stay_on_their_cores():
    code = (
        "from harness import machine; first = machine.cores()[0]; "
        "print(machine.pin(first) == hasattr(__import__('os'), 'sched_setaffinity'), "
        "len(machine.cores()))"
    )
    told, number = python("-c", code, cwd=everything.ROOT / "benchmarks").stdout.split()
    assert told == "True"
    assert int(number) == (1 if hasattr(os, "sched_setaffinity") else len(machine.cores()))
