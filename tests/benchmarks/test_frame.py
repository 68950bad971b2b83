"""How a benchmark ends: what a busy machine excuses and what it does not; all.py; the searches."""

import json
import math
import subprocess
from pathlib import Path
from unittest.mock import ANY

import all as everything
import pytest
from harness import claims, estimates, frame, interleaved, machine, tuning

from tests.benchmarks.scripts import BENCHMARKS, GROUPS
from tests.pairs import each_of
from tests.processes import python


def chosen(frame, *words):
    return frame.flags("", **frame.MODES).parse_args(words)


@each_of(
    ("time", "lost", "others_load", "verdict", "code"),
    [
        (1.0, 0, 0.0, "supported", 0),
        (1.2, 0, 0.0, "refuted", 1),
        (float("nan"), 0, 0.0, "refuted", 1),
        (1.0, 0, 0.5, "not_measured", 3),
        (1.2, 0, 0.5, "not_measured", 3),
        (1.0, 7, 0.5, "refuted", 1),
    ],
)
def test_a_busy_machine_excuses_timings_and_never_counts(
    capsys, time, lost, others_load, verdict, code
):
    def measure(findings, _):
        findings.at_most("time ratio", time, 1.15)
        findings.exact("adds lost", lost, 0)
        findings.results["ns"] = {"add": estimates.Mean.of([3.0, 1.0, 2.0])}
        findings.others_load = others_load

    assert frame.measured("adds", chosen(frame), measure) == code
    printed = capsys.readouterr().out
    line = json.loads(printed.splitlines()[-1])
    assert line["verdict"] == verdict
    assert line["ns"]["add"] == {"value": 2.0, "low": ANY, "high": ANY, "n": 3}
    assert ("busy machine" in printed) == (others_load > 0.1)


@pytest.mark.parametrize(
    ("mode", "others_load", "ended"),
    [("--quick", 0.0, "refuted"), ("--quick", 0.5, "not_measured"), ("--tiny", 0.0, "refuted")],
)
def test_a_result_is_written_whole_and_limits_of_documents_decide_no_exit_code(
    tmp_path, mode, others_load, ended
):
    def measure(findings, options):
        findings.others_load = others_load
        seconds = claims.Claim("seconds", 2.0, "<=", 1.0)
        findings.document(seconds, claims.Claim("metres", 4.9, "<=", 5.0, timing=False))

    words = [mode, "--output", str(tmp_path)]
    assert frame.measured("falling", chosen(frame, *words), measure, seeds=(2, 3)) == 0
    document = json.loads((tmp_path / "falling.json").read_text())
    assert document["verdict"] == "no_limit"
    ends = {one["name"]: one["ended"] for one in document["claims"]}
    assert ends == {"seconds": ended, "metres": "supported"}
    assert {"machine", "versions", "commit", "others_load", "seeds", "command"} <= document.keys()
    assert document["seeds"] == ([1] if mode == "--tiny" else [1, 2])


def test_the_estimates_of_a_script_are_corrected_together_those_of_documents_too():
    weak = estimates.Ratio.of([1.05, 1.3, 1.25, 1.04, 1.2], [1.0] * 5)
    assert weak.low > 1.0
    findings = claims.Findings()
    findings.document(claims.Claim.of("weak", weak, ">=", 1.0))
    assert [claim.ended for claim in findings.judged(0.0).claims] == ["supported"]
    for k in range(9):
        findings.at_least(f"{k}", weak, 1.0)
    assert {claim.ended for claim in findings.judged(0.0).claims} == {"inconclusive"}


def test_a_script_runs_its_parts_or_an_action(monkeypatch, tmp_path):
    done = []

    def part(name):
        return lambda findings, options: done.append((name, options.number))

    def search(options):
        """Search the settings."""
        done.append(("search", options.mode))

    parts = {name: part(name) for name in ("one", "two")}
    how = {"first": {"quick": 1}, "actions": {"tune": search},
           "options": {"--number": {"type": int, "default": 3}}}  # fmt: skip
    for words in ("--full", "--quick", "--only two --number 4", "--tune"):
        monkeypatch.setattr("sys.argv", ["script.py", *words.split()])
        with pytest.raises(SystemExit) as end:
            frame.run("What it measures.", parts, **how)
        assert not end.value.code
    assert done == [("one", 3), ("two", 3), ("one", 3), ("two", 4), ("search", "full")]


def test_a_script_that_tells_equal_arms_apart_gives_no_verdict():
    findings = claims.Findings()
    findings.exact("counts", 0, 0)
    assert frame.document(findings.judged(0.0), 0.0, ())["verdict"] == "supported"
    findings.same("arm", [1.0, 1.01, 0.99], [1.1, 1.11, 1.09])
    assert frame.document(findings.judged(0.0), 0.0, ())["verdict"] == "inconclusive"


def test_results_that_a_run_writes_leave_its_commit_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "package", lambda: tmp_path / "mlxhog")
    result, code = tmp_path / "benchmarks" / "results" / "one.json", tmp_path / "code.py"
    result.parent.mkdir(parents=True)
    for path in (result, code):
        path.write_text("before")
    author = ("-c", "user.name=n", "-c", "user.email=e@e")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    clean = machine.commit()
    result.write_text("after")
    assert machine.commit() == clean
    assert not clean.endswith("+")
    code.write_text("after")
    assert machine.commit() == f"{clean}+"


def test_a_result_has_one_row_a_line(tmp_path):
    path = tmp_path / "one.json"
    row = {"scheme": "hogwild", "losses": [0.1] * 40}
    value = {"seeds": list(range(500)), "mean": math.nan, "table": [row] * 3, "about": "x" * 600}
    frame.write_rows(path, value)
    assert json.loads(path.read_text()) == {**value, "mean": None}
    lines = path.read_text().splitlines()
    assert len(lines) == 10
    assert [json.loads(line.rstrip(",")) for line in lines[4:7]] == [row] * 3


def test_finished_runs_are_lines_of_a_file_that_a_later_run_reads(tmp_path):
    count = []

    def run(arm, seed):
        count.append(1)
        return {"arm": arm, "seed": seed}

    file = tmp_path / "runs"
    for _ in range(2):
        once = interleaved.remembered(file, run, of=lambda value: value["seed"])
        assert [once("sync", seed) for seed in (1, 2)] == [1, 2]
    assert len(count) == 2
    file.write_bytes(file.read_bytes()[:-9])  # killed while it wrote the second
    for number in (3, 3):
        once = interleaved.remembered(file, run, of=lambda value: value["seed"])
        assert [once("sync", seed) for seed in (1, 2)] == [1, 2]
        assert len(count) == number


def test_every_arm_is_tuned_on_the_same_axes_by_as_many_trials_and_never_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tried, best = {}, {"lr": 2.0, "beta1": 0.8}

    def trial(arm, point):
        tried.setdefault(arm, []).append(point)
        return sum(abs(math.log(point[axis] / best[axis])) for axis in best)

    axes = {"lr": tuning.around(1.0, 2.0, 5), "beta1": (0.8, 0.9, 0.95)}
    tuning.tune("falling", dict.fromkeys(("a", "b"), axes), trial)
    assert {len(points) for points in tried.values()} == {5 + 3 - 1}
    assert tuning.settings("falling", ["a", "b"]) == {"a": best, "b": best}
    tuning.tune("falling", dict.fromkeys(("a", "b"), axes), trial)
    assert {len(points) for points in tried.values()} == {5 + 3 - 1}
    with pytest.raises(SystemExit, match="no settings were searched for c; run it with --tune"):
        tuning.settings("falling", ["a", "c"])
    with pytest.raises(AssertionError):
        tuning.tune("falling", {"a": axes, "c": {"lr": (1.0,), "beta1": (0.9,)}}, trial)


def test_a_best_step_size_at_the_end_of_its_axis_is_refused_and_divergence_is_worst():
    with pytest.raises(SystemExit, match=r"lr 3 is the last of its axis"):
        tuning.tuned({"lr": (1, 2, 3), "beta1": (0.9,)}, lambda point: -point["lr"])
    losses = {1: math.nan, 2: 5.0, 3: None}
    assert tuning.tuned({"lr": (1, 2, 3)}, lambda point: losses[point["lr"]]) == {"lr": 2}


def test_a_failed_script_stops_no_other_and_one_that_hangs_is_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(everything, "RESULTS", tmp_path / "results")
    texts = {
        "good": "raise SystemExit(3)", "bad": "raise ValueError('the disk is on fire')",
        "hangs": "import subprocess\nsubprocess.run(['sleep', '3600'])",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    scripts = [everything.Script(name, 1) for name in ("bad", "good")]
    assert everything.run_all(scripts, full=False) == {"bad": 4, "good": 3}
    assert "the disk is on fire" in capfd.readouterr().err
    monkeypatch.setattr(everything, "TABLE", scripts)
    for names, code in ((["good"], 0), (["good", "bad"], 4)):  # 3 counts for counts only
        assert everything.main(["--quick", "--only", *names]) == code
    assert everything.run(["hangs.py"], limit_s=0.4) == 4


def test_scripts_of_the_table_exist_know_their_words_and_take_a_day_and_a_half():
    for one in everything.TABLE:
        text = (everything.RESULTS.parent / f"{one.name}.py").read_text()
        assert not one.keep or f'"{one.keep}"' in text or one.keep == "--keep" and "KEEP" in text
        assert one.keep or "KEEP" not in text, f"{one.name} could continue inside a campaign"
        flags = [word for word in one.full.split() if word not in ("--full", "--quick", "--only")]
        assert all(f'"{word}"' in text for word in flags if word.startswith("-")), one
    assert sum(one.seconds for one in everything.TABLE) <= 36 * 3600


def test_a_recorded_command_has_no_path_of_this_machine(monkeypatch):
    words = "schemes.py --full --keep here/a --output there --only schemes"
    monkeypatch.setattr("sys.argv", words.split())
    assert frame._command() == ["schemes.py", "--full", "--only", "schemes"]


def test_a_script_that_there_is_not_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as end:
        everything.main(["--quick", "--only", "stailness"])
    assert end.value.code == 2
    assert "no script stailness here; there are schemes" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence(tmp_path):
    from tests.benchmarks.conftest import BENCHMARKS

    text = "import sys; sys.argv[0] = sys.argv[1]; import harness.frame; import nothing_such"
    done = python("-c", text, str(BENCHMARKS / "live.py"), cwd=BENCHMARKS)
    assert done.returncode == 1
    assert done.stderr.startswith("nothing_such is not installed, and live.py needs it")


def test_every_script_is_in_a_group_and_every_group_has_a_file_of_tests():
    every = [name for names in GROUPS.values() for name in names.split()]
    scripts = (path.stem for path in BENCHMARKS.glob("*.py"))
    assert sorted(every) == sorted(name for name in scripts if name != "all")
    for group in GROUPS:
        file = Path(__file__).with_name(f"test_scripts_{group}.py")
        assert f'check_scripts("{group}")' in file.read_text()
