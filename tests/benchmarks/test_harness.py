"""How a benchmark ends: what a busy machine excuses, and what it does not."""

import json
import math
import subprocess
from argparse import Namespace

import pytest

from tests.pairs import each_of


@pytest.fixture(scope="module")
def harness(load):
    return load("harness.claims")


def claims(harness, *, time, lost):
    return [
        harness.Claim("time ratio", time, "<=", 1.15),
        harness.Claim("adds lost", lost, "==", 0, timing=False),
    ]


@each_of(
    ("time", "lost", "others_load", "verdict", "code"),
    [
        (1.0, 0, 0.0, "met", 0),
        (1.2, 0, 0.0, "missed", 1),
        (float("nan"), 0, 0.0, "missed", 1),
        (1.0, 0, 0.5, "not_measurable", 3),
        (1.2, 0, 0.5, "not_measurable", 3),
        (1.0, 7, 0.5, "missed", 1),
    ],
)
def test_a_busy_machine_excuses_timings_and_never_counts(
    harness, capsys, time, lost, others_load, verdict, code
):
    def measure(findings, _):
        findings.claims = claims(harness, time=time, lost=lost)
        findings.results["ns"] = {"add": harness.Sample.of([3.0, 1.0, 2.0])}
        findings.others_load = others_load

    assert harness.measured("adds", Namespace(), measure) == code
    printed = capsys.readouterr().out
    line = json.loads(printed.splitlines()[-1])
    assert line["verdict"] == verdict
    assert line["ns"]["add"] == {"median": 2.0, "low": 1.0, "high": 3.0, "repeats": 3}
    assert {"machine", "versions", "commit", "claims"} <= line.keys()
    assert ("busy machine" in printed) == (others_load > 0.1)


@each_of(
    ("interval", "ended"),
    [
        ((1.2, 1.5), "met"),
        ((1.0, 1.5), "cannot_be_told"),
        ((1.0, 1.1), "missed"),
        ((float("nan"), float("nan")), "cannot_be_told"),
    ],
)
def test_an_interval_that_holds_the_limit_tells_nothing(harness, interval, ended):
    claim = harness.Claim("sooner", 1.3, ">=", 1.2, interval=interval)
    assert claim.ended == ended
    assert harness.verdict([claim], others_load=0.0) == ended
    assert harness.verdict([claim, *claims(harness, time=1.2, lost=0)], others_load=0.0) == "missed"


def test_a_script_without_limits_has_no_verdict_and_no_failure(harness, capsys):
    assert harness.measured("nothing", Namespace(), lambda findings, chosen: None) == 0
    printed = capsys.readouterr().out
    assert "no limit of our own" in printed
    assert json.loads(printed.splitlines()[-1])["verdict"] == "no_limit"


def test_what_cannot_be_told_is_printed_as_such(harness, load, capsys):
    estimates = load("harness.estimates")

    def measure(findings, _):
        findings.others_load = 0.0
        findings.at_least("faster", estimates.Ratio.of([1.0, 2.0, 3.0], [1.5, 1.5, 1.5]), 1.0)
        findings.same("serial", [1.0, 1.1, 1.2], [1.1, 1.2, 1.0])

    assert harness.measured("speeds", Namespace(), measure) == 3
    printed = capsys.readouterr().out
    assert "cannot be told  faster: 1.211 (" in printed
    assert "n 3) (wanted >= 1)" in printed
    assert "A/A: 0 false verdicts in 1" in printed
    line = json.loads(printed.splitlines()[-1])
    assert line["claims"][0]["n"] == 3
    assert line["twins"]["false_verdicts"] == 0


def test_results_that_a_run_writes_leave_its_commit_clean(load, tmp_path, monkeypatch):
    machine = load("harness.machine")
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
    subprocess.run(["git", "-C", str(tmp_path), *author, "commit", "-qam", "results"], check=True)
    assert machine.commit() == clean  # a run goes on after its results were committed
    code.write_text("after")
    assert machine.commit() == f"{clean}+"


def test_results_of_another_package_or_of_changed_files_are_of_no_commit(
    load, tmp_path, monkeypatch
):
    machine = load("harness.machine")
    monkeypatch.setattr(machine, "package", lambda: tmp_path / "mlxhog")
    assert str(machine.commit()).endswith("+")
    assert "pip install -e ." in machine.not_this_commit()
    monkeypatch.setattr(machine, "package", lambda: machine.ROOT / "mlxhog")
    monkeypatch.setattr(machine, "commit", lambda: "abc+")
    assert machine.not_this_commit()  # older native module, or changes
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert "commit or stash" in machine.not_this_commit()
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    assert machine.not_this_commit() == ""


def test_a_figure_of_no_result_is_refused_with_the_command_that_makes_one(
    load, experiment, tmp_path
):
    arguments = ["--draw", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"falling.json is missing.*falling.py --full"):
        experiment.run(about(experiment), lambda _: None, draw(load), arguments=arguments)


def test_a_result_has_one_row_a_line(harness, tmp_path):
    path = tmp_path / "one.json"
    row = {"scheme": "hogwild", "losses": [0.1] * 40}
    value = {"seeds": list(range(500)), "mean": math.nan, "table": [row] * 3, "about": "x" * 600}
    harness.write_rows(path, value)
    assert json.loads(path.read_text()) == {**value, "mean": None}
    lines = path.read_text().splitlines()
    assert len(lines) == 10
    assert [json.loads(line.rstrip(",")) for line in lines[4:7]] == [row] * 3


def test_repeats_without_any_spread_are_no_interval_and_decide_nothing(load, harness):
    mean = load("harness.estimates").Mean.of([0.5, 0.5, 0.5])
    for limit in (0.0, 0.5, 1.0):
        claim = harness.Claim.of("share", mean, "<=", limit)
        assert (claim.ended, claim.measured) == ("cannot_be_told", "0.5 (n 3, no interval)")


def test_a_script_that_tells_equal_arms_apart_gives_no_verdict(harness):
    own, again = [1.0, 1.01, 0.99], [1.1, 1.11, 1.09]
    findings = harness.Findings(twins=[harness.Twin.of("arm", own, own)])
    findings.exact("counts", 0, 0)
    assert harness.document(findings, 0.0, ())["verdict"] == "met"
    findings.same("arm", own, again)
    assert harness.document(findings, 0.0, ())["verdict"] == "cannot_be_told"


def test_turns_that_others_disturbed_are_repeated_and_do_not_count(load):
    loads = {"ours": iter([0.0, 0.5, 0.0, 0.0]), "theirs": iter([0.0, 0.0, 0.0])}

    def turn(arm):
        load = next(loads[arm])
        return load, load

    turns, others_load = load("harness.interleaved").quiet_turns(3, loads, turn)
    assert turns == {"ours": [0.0] * 3, "theirs": [0.0] * 3}
    assert others_load == 0.0


def test_where_no_turn_is_quiet_all_count_and_the_load_says_so(load):
    turns, others_load = load("harness.interleaved").quiet_turns(
        3, ["ours"], lambda arm: (1.0, 0.5)
    )
    assert turns == {"ours": [1.0] * 3}
    assert others_load == 0.5


# -- how an experiment is written down -------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(load):
    return load("experiment.record")


def about(experiment):
    return experiment.Experiment(
        name="falling", title="How apples fall", source="document 9, Test 1", about="We drop one."
    )


def draw(load):
    figures = load("experiment.figures")

    def one_line(outcome):
        figure, axes = figures.new_panel(x="seconds", y="metres", heading="Falling")
        figures.curves(axes, {"red": ([0, 1], [0, outcome.results["metres"]["median"]])})
        return figure

    return one_line


def outcome(harness, experiment, *, limit=5.0):
    return experiment.Outcome(
        compared=[
            experiment.Compared("it falls", "it fell", experiment.HOLDS, timing=False),
            experiment.Compared("it is fast", "it took 1 s", experiment.FAILS),
        ],
        table=[{"apple": "red", "metres": 4.905}],
        claims=[harness.Claim("metres in a second", 4.905, "<=", limit, timing=False)],
        settings={"g": 9.81},
        results={"metres": harness.Sample.of([4.9, 4.905, 4.91])},
    )


def test_a_result_holds_everything_a_second_person_needs(load, harness, experiment, tmp_path):
    answer = outcome(harness, experiment)
    for mode in ("--tiny", "--draw"):
        arguments = [mode, "--out", str(tmp_path)]
        run = experiment.run(about(experiment), lambda _: answer, draw(load), arguments=arguments)
        assert run == 0
    document = json.loads((tmp_path / "falling.json").read_text())
    assert document["command"] == "python benchmarks/experiments/falling.py --tiny"
    assert document["compared"][0]["claim"] == "it falls"
    assert document["results"]["metres"]["median"] == 4.905
    assert {"machine", "versions", "commit", "others_load", "seeds", "settings"} <= document.keys()
    assert (tmp_path / "falling.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("mode", "expected"), [("quick", 1), ("tiny", 0)])
def test_a_missed_limit_ends_with_1_unless_the_run_is_tiny(
    load, harness, experiment, tmp_path, monkeypatch, mode, expected
):
    monkeypatch.setattr(experiment, "wait_until_quiet", lambda patience_s: 0.0)
    arguments = [f"--{mode}", "--out", str(tmp_path)]
    answer = outcome(harness, experiment, limit=1.0)
    code = experiment.run(about(experiment), lambda _: answer, draw(load), arguments=arguments)
    assert code == expected


@each_of(
    ("mode", "others_load", "fast", "falls"),
    [
        ("quick", 0.0, "does not hold", "holds"),
        ("quick", 0.5, "cannot be told here", "holds"),
        ("tiny", 0.0, "cannot be told here", "cannot be told here"),
    ],
)
def test_a_busy_machine_leaves_no_verdict_on_times_and_a_tiny_run_none_at_all(
    harness, experiment, mode, others_load, fast, falls
):
    scale = experiment.Scale(mode)
    document = experiment.document_of(
        about(experiment), scale, outcome(harness, experiment), others_load, seconds=1.0
    )
    verdicts = {one["claim"]: one["verdict"] for one in document["compared"]}
    assert verdicts == {"it falls": falls, "it is fast": fast}
    # All limits of our own are counts; the claim about times has to be measured again.
    assert document["verdict"] == ("not_measurable" if others_load else "met")


def test_the_estimates_of_a_claim_decide_its_verdict_together_with_all_of_the_page(
    load, harness, experiment
):
    ratio = load("harness.estimates").Ratio
    clear = ratio.of([2.0, 2.1, 2.2, 2.0, 2.1], [1.0] * 5)
    weak = ratio.of([1.05, 1.3, 1.25, 1.04, 1.2], [1.0] * 5)
    assert weak.low > 1.0
    alone = experiment.Compared.of("it is faster", harness.Claim.of("weak", weak, ">=", 1.0))
    assert alone.verdict == experiment.HOLDS
    others = [harness.Claim.of(f"{k}", weak, ">=", 1.0) for k in range(9)]
    slow = experiment.Compared.of("it is slower", harness.Claim.of("clear", clear, "<=", 1.0))
    page = experiment.together_corrected(
        experiment.Outcome(compared=[alone, slow], table=[], claims=others)
    )
    assert [one.verdict for one in page.compared] == [experiment.UNTOLD, experiment.FAILS]
    assert {claim.ended for claim in page.claims} == {"cannot_be_told"}


def test_settings_that_were_never_searched_are_asked_for_by_name(load):
    with pytest.raises(SystemExit, match=r"falling.py --tune"):
        load("experiment.searches").recorded("falling")


def test_a_search_measures_nothing_twice_and_goes_on_where_it_was_ended(
    load, tmp_path, monkeypatch
):
    searches = load("experiment.searches")
    monkeypatch.setattr(searches, "settings_file", lambda name: tmp_path / f"{name}.json")
    measured = []

    def search():
        trials = searches.Trials("falling")

        def score(lr):
            def bits():
                measured.append(lr)
                return abs(lr - 3.0)

            return float(trials.score({"lr": lr}, bits))

        return float(searches.descend(score, 1.0))

    assert search() == 2.0
    assert sorted(measured) == [1.0, 2.0, 4.0, 8.0]  # 4 is as good as 2
    assert search() == 2.0
    assert len(measured) == 4


def test_a_step_size_beyond_an_equal_one_is_tried(load):
    losses = {1.0: 3.0, 2.0: 2.0, 4.0: 2.0, 8.0: 1.0, 16.0: 5.0, 0.5: 4.0}
    assert load("experiment.searches").descend(losses.__getitem__, 1.0) == 8.0
