"""RESULTS.md and docs/claims.md are what their generators write from the committed results."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "run python benchmarks/all.py --page"


@pytest.fixture(scope="module")
def page(load):
    return load("harness.claims_page")


def test_both_pages_are_what_all_writes_from_the_results(load):
    pages = load("all").pages(ROOT / "benchmarks" / "results")
    assert len(pages) == 2
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, AGAIN


def test_every_row_finds_its_claim_in_the_result_of_its_script(page):
    text = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if page.LACKS in line]
    assert not rows, "\n".join(rows)


def test_the_page_of_claims_takes_numbers_and_verdicts_from_results(page):
    result = {
        "benchmark": "one", "verdict": "missed", "mode": "quick", "command": "python one.py",
        "versions": {"mlxhog": "0.1.0"},
        "claims": [{"name": "ratio, x", "value": 1.1, "relation": ">=", "limit": 1.2, "met": False,
                    "ended": "missed", "interval": [1.05, 1.15], "n": 5}],
        "compared": [{"claim": "it is fast", "measured": "twice", "verdict": "holds",
                      "rests_on": [{"name": "rest", "value": 2.0, "relation": ">=", "limit": 1.0,
                                    "interval": [1.9, 2.1], "n": 3}]}],
    }  # fmt: skip
    table = """
- title: Group
  rows:
    - {claim: A, result: one, limit: [ratio], correction: It is not.}
    - {claim: B, result: one, compared: it is, correction: Yes., document: "001"}
    - {claim: C, result: two, correction: "-"}
    - {claim: D, derived: by hand, verdict: holds, correction: "-", link: numbers.md}
    - {claim: E, result: one, limit: [gone], correction: "-"}
    - {claim: F, result: one, limit: [ratio], means: {missed: holds}, correction: "-"}
    - {claim: G, result: one, limit: [ratio], below: 1.2, correction: "-"}
    - {claim: H, result: one, limit: [ratio], below: 1.1, correction: "-"}
    - {claim: I, result: one, limit: [ratio], below: 1.0, correction: "-"}
    - {claim: J, result: one, limit: [rest], above: 1.5, correction: "-"}
    - {claim: K, result: one, limit: [ratio, rest], above: 1.5, correction: "-"}
"""
    text = page.claims_page(table, [result])
    ratio = "mlxhog 0.1.0: ratio, x: 1.1 (1.05 to 1.15, n 5), limit >= 1.2"
    assert f"| README | A | {ratio} | **missed** | It is not." in text
    assert "| 001 | B | mlxhog 0.1.0: twice | **holds** | Yes." in text
    assert f"| README | C | {page.NOT_YET} | **cannot be told** |" in text
    assert "| README | D | derived: by hand | **holds** | - [numbers](numbers.md) |" in text
    assert f"| README | E | mlxhog 0.1.0: {page.LACKS} gone | **cannot be told** |" in text
    assert (
        "| README | F | mlxhog 0.1.0: ratio, x: 1.1 (1.05 to 1.15, n 5), limit >= 1.2 | **holds** |"
        in text
    )
    ratio = ratio.removesuffix(", limit >= 1.2")
    for name, verdict in (("G", "holds"), ("H", "cannot be told"), ("I", "does not hold")):
        assert f"| README | {name} | {ratio} | **{verdict}** |" in text
    assert "| README | J | mlxhog 0.1.0: rest: 2 (1.9 to 2.1, n 3) | **holds** |" in text
    assert "(1.9 to 2.1, n 3) | **holds in part** | -" in text
    assert "| one | `python one.py` |" in text


def test_where_equal_arms_differ_a_bound_must_lie_beyond_their_difference(page):
    near, far = (
        {"name": name, "value": 1.1, "relation": ">=", "limit": 1.0, "met": True, "ended": "met",
         "interval": [low, 1.2], "n": 5}
        for name, low in (("near", 1.02), ("far", 1.06))
    )  # fmt: skip
    twins = {"comparisons": [{"name": "arm", "value": 1 / 1.05}], "false_verdicts": 1}
    result = {"benchmark": "one", "verdict": "met", "claims": [near, far], "twins": twins}
    words = []
    for limit in ("near", "far"):
        text, verdict = page.measured_of({"result": "one", "limit": [limit], "above": 1},
                                         {"one": result})  # fmt: skip
        assert text.endswith("two equal arms differ by a factor of 1.050 (A/A)")
        words.append(verdict)
    assert words == ["cannot be told", "holds"]


def test_a_row_whose_limit_was_disturbed_is_not_measurable(page):
    limits = [("a", "met"), ("b", "not_measurable"), ("c", "missed")]
    claims = [{"name": name, "value": 1.0, "relation": ">=", "limit": 1.0, "ended": ended}
              for name, ended in limits]  # fmt: skip
    result = {"benchmark": "one", "verdict": "missed", "claims": claims}
    ends = [page.measured_of({"result": "one", "limit": [*names]}, {"one": result})[1]
            for names in ("a", "ab", "abc")]  # fmt: skip
    assert ends == ["met", "not measurable", "missed"]


def test_every_row_names_a_script_and_what_that_script_can_claim(load):
    everything, rows = load("all"), yaml.safe_load(load("harness.claims_page").CLAIMS.read_text())
    scripts = {one.name: everything.HERE / one.script.split()[0] for one in everything.TABLE}
    for row in (row for group in rows for row in group["rows"] if "result" in row):
        assert row["result"] in scripts, row["claim"]
        if "compared" in row:
            text = re.sub(r'"\s+f?"', "", scripts[row["result"]].read_text())
            assert row["compared"] in text, row["claim"]
    allowed = {"derived", "once", "result"}
    assert all(len(allowed & row.keys()) == 1 for group in rows for row in group["rows"])


def test_the_constants_of_the_advisor_lie_in_the_intervals_of_the_results(load):
    constants = load("advisor").constants(ROOT / "benchmarks" / "results")
    assert set(constants) == {"LOCAL_COST", "STALENESS_COST"}
    for name, (value, estimate) in constants.items():
        assert estimate.low <= value <= estimate.high, f"{name}: {estimate.spelt('.3f')}"
