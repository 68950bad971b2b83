"""docs/results.md and benchmarks/documents.md are what their generator writes from the results."""

import json
from pathlib import Path

import advisor
import pytest
import schemes
import yaml
from harness import claims, page
from training import race

ROOT = Path(__file__).resolve().parents[2]


def test_both_pages_are_what_all_writes_from_the_results():
    for path, text in page.pages(ROOT / "benchmarks" / "results").items():
        assert path.read_text(encoding="utf-8") == text, "run python benchmarks/all.py --page"
        assert page.LACKS not in text
    table = yaml.safe_load(page.CLAIMS.read_text())
    rows = [row for part in table.values() for group in part["groups"] for row in group["rows"]]
    known = page.read(ROOT / "benchmarks" / "results")
    assert {row["result"] for row in rows if "result" in row} <= known.keys()
    assert all(len({"derived", "once", "result"} & row.keys()) == 1 for row in rows)


def limit(name, value, low, high, ended, bound=1.2):
    return {"name": name, "value": value, "relation": ">=", "limit": bound, "ended": ended,
            "interval": [low, high], "n": 5}  # fmt: skip


def test_a_row_has_the_limits_of_its_result_unless_it_names_some_and_says_which_are_lacking():
    """The recorded pages, above, have all other forms of rows."""
    ratio, rest = (limit(name, 1.1, 1.05, 1.15, "refuted") for name in ("ratio, x", "rest"))
    results = {"one": {"claims": [ratio, rest | {"document": True}]}}
    words = "ratio, x: 1.1 (1.05 to 1.15, n 5), limit >= 1.2"
    assert page.measured_of({"result": "one"}, results) == (words, "refuted")
    row = {"result": "one", "limit": ["gone"]}
    assert page.measured_of(row, results) == (f"{page.LACKS} gone", "inconclusive")


def test_where_equal_arms_differ_a_bound_must_lie_beyond_their_difference():
    claims = [
        limit(name, 1.1, low, 1.2, "supported") for name, low in (("near", 1.02), ("far", 1.06))
    ]
    controls = {"comparisons": [{"name": "arm", "value": 1 / 1.05}], "false_verdicts": 1}
    results, words = {"one": {"claims": claims, "controls": controls}}, []
    for name in ("near", "far"):
        row = {"result": "one", "limit": [name], "above": 1}
        text, verdict = page.measured_of(row, results)
        assert text.endswith("; A/A 1.050")
        words.append(verdict)
    assert words == ["inconclusive", "supported"]


def test_the_constants_of_the_advisor_lie_in_the_intervals_of_the_results():
    constants = advisor.constants(ROOT / "benchmarks" / "results")
    assert set(constants) == {"LOCAL_COST", "STALENESS_COST"}
    for name, (value, estimate) in constants.items():
        assert estimate.low <= value <= estimate.high, f"{name}: {estimate.spelt('.3f')}"


def test_the_verdicts_of_the_recorded_race_follow_from_its_numbers():
    known = json.loads((ROOT / "benchmarks" / "results" / "schemes.json").read_text())
    reached_of = race.reached_of
    trained = {
        (row["condition"], row["scheme"], row["workers"]): list(map(reached_of, row["runs"]))
        for row in known["trainings"]
    }
    findings = claims.Findings()
    schemes.compare(findings, trained)
    page = {claim.name: claim for claim in findings.judged(0.0).claims}
    for one in known["claims"]:
        assert page[one["name"]].ended == one["ended"]
        assert page[one["name"]].value == pytest.approx(one["value"], rel=1e-3)
