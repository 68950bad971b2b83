"""The pages of results are what their generator writes, and their verdicts follow from numbers."""

import json
import math
import re
from pathlib import Path

import advisor
import all as everything
import pytest
import schemes
import yaml
from harness import claims, estimates, page, verdicts
from training import race

from mlxhog.base import plain_json
from tests.pairs import each_of

ROOT = Path(__file__).resolve().parents[2]
TABLE = yaml.safe_load(page.CLAIMS.read_text("utf-8"))
RESULTS = page.read(page.RESULTS)
JUDGED = [(part, row) for part in ("results", "documents") for row in page.rows_of(TABLE[part])]


def test_all_pages_are_what_all_writes_from_the_results():
    for path, text in page.pages().items():
        assert path.read_text("utf-8") == text, "run python benchmarks/all.py --page"
    assert {row["result"] for _, row in JUDGED if "result" in row} <= RESULTS.keys()
    assert all(len({"derived", "once", "result"} & row.keys()) == 1 for _, row in JUDGED)


def test_every_result_says_whether_this_checkout_can_repeat_it():
    for name, result in RESULTS.items():
        assert result.get("stale", "") == page.why_stale(result), name


def test_no_verdict_is_typed_where_a_number_decides_and_all_are_of_four_words():
    words = {"supported", "refuted", "inconclusive", "not measured", page.NONE}
    undecided = "inconclusive", page.NONE
    for part, row in JUDGED:
        known = page.families(TABLE[part], RESULTS)
        assert page.measured_of(row, RESULTS, known)[1] in words
        typed = row.get("verdict")
        assert typed is None or "derived" in row or ("once" in row and typed in undecided)


def test_the_page_of_results_judges_at_most_four_comparisons_of_a_script():
    for name, family in page.families(TABLE["results"], RESULTS).items():
        several = [row for row in page.rows_of(TABLE["results"]) if row.get("result") == name]
        planned = family.names if len(several) > 1 or "quantity" in several[0] else set()
        assert len(planned) <= verdicts.MAX_PLANNED, name


def test_full_measures_every_result_of_the_pages_in_order_but_those_not_asked():
    """A script writes the result of its name, or those of its parts."""
    texts = {one.name: (page.RESULTS.parent / f"{one.name}.py").read_text("utf-8")
             for one in everything.TABLE}  # fmt: skip
    order = []
    for _, row in JUDGED:
        if (name := row.get("result")) and name not in everything.NOT_ASKED:
            part = rf'def {name}\(findings|"{name}": (partial|{name})\b'
            writers = [own for own, text in texts.items() if re.search(part, text)]
            order += [name] if name in texts else writers
            assert name in texts or len(writers) == 1, name
    assert everything.NOT_ASKED.keys() <= {row.get("result") for _, row in JUDGED}
    known = list(dict.fromkeys(order))
    assert known == [name for name in texts if name in known]


# At most four comparisons of a script, of five pairs or more: what broke the rule when it was
# recorded. A name goes once it is measured again by the sizes of today.
FEWER_PAIRS = (
    "across_machines chaos collect_tiny fine_tuning late_gradients late_workers many_cores minute "
    "moments ngram_tables own_text second_machine staleness unequal_workers widths"
)
MORE_COMPARISONS = {
    "page": {"predicted_speed": 13},
    "script": {
        "across_machines": 8, "auto": 8, "chaos": 12, "classic_speed": 17, "compare_power": 6,
        "late_gradients": 9, "linear_regression": 10, "model_speed": 24,
        "predicted_speed": 13,
    },
}  # fmt: skip


def test_planned_comparisons_are_four_of_five_pairs_but_for_those_counted_here():
    known = page.families(TABLE["results"], RESULTS)
    fewer = [name for name, own in known.items()
             if any(one["n"] < estimates.MIN_PAIRS for one in own.plan())]  # fmt: skip
    assert sorted(fewer) == FEWER_PAIRS.split()
    of_script = {
        name: sum(bool(one["interval"]) and not one.get("document") for one in result["claims"])
        for name, result in RESULTS.items()
    }
    planned = {"page": {name: len(own.names) for name, own in known.items()}, "script": of_script}
    for where, counts in planned.items():
        more = {name: n for name, n in counts.items() if n > verdicts.MAX_PLANNED}
        assert more == MORE_COMPARISONS[where]


def test_seeds_of_full_are_five_or_more_where_a_verdict_is_wanted():
    texts = {path.stem: path.read_text("utf-8") for path in page.RESULTS.parent.glob("*.py")}
    seeds = {name: int(found[1]) for name, text in texts.items()
             if (found := re.search(r"seeds=\(\d+, (\d+)\)", text))}  # fmt: skip
    assert len(seeds) > 10
    fewer = {name for name, n in seeds.items() if n < estimates.MIN_PAIRS}
    assert fewer == {"presets_by_text"}  # one table without a verdict


def test_no_statement_is_supported_whose_interval_is_on_the_other_side():
    """By comparisons of this test's own, for each row and each of its quantities."""
    decided = 0
    for part, row in JUDGED:
        if "expected" not in row:
            continue
        known = page.families(TABLE[part], RESULTS)
        verdict = page.measured_of(row, RESULTS, known)[1]
        sides = [side(one, row["expected"]) for one in verdicts.named(RESULTS[row["result"]], row)]
        if verdict == "supported":
            assert set(sides) == {"inside"}, row["claim"]
        if verdict == "refuted":
            assert "outside" in sides, row["claim"]
        decided += verdict in ("supported", "refuted")
    assert decided > 30


def side(one, expected):
    """Where the interval of a quantity lies: inside what is expected, outside, or across."""
    low, high = one["interval"] or (one["value"],) * 2
    if low is None:
        return "across"
    if expected == "limits":
        expected = f"{one['least']} to {one['limit']}" if one["relation"] == "within" else (
            f"{one['relation']} {one['limit']}")  # fmt: skip
    if " to " in expected:
        least, most = map(float, expected.split(" to "))
    else:
        relation, bound = expected.split()
        least = float(bound) if relation[0] in ">=" else -math.inf
        most = float(bound) if relation[0] in "<=" else math.inf
    if least <= low and high <= most:
        return "inside"
    return "outside" if high < least or low > most else "across"


def quantity(name, value, low, high, n=5, **more):
    return {"name": name, "value": value, "relation": ">=", "limit": 1.0, "ended": "supported",
            "interval": [low, high], "n": n, "timing": True, **more}  # fmt: skip


def family(*quantities, expected, **result):
    known = {"claims": quantities, "controls": {"comparisons": [], "false_verdicts": 0}, **result}
    return verdicts.Family(known, [{"expected": expected}])


@each_of("expected, verdict", [
    ("> 1", "supported"), ("< 1", "refuted"), (">= 1.15", "inconclusive"), ("> 2", "refuted"),
    ("1.05 to 1.4", "supported"), ("0.9 to 1.15", "inconclusive"), ("limits", "supported"),
])  # fmt: skip
def test_a_verdict_follows_from_the_side_of_the_bound_on_which_the_interval_lies(expected, verdict):
    one = quantity("ratio", 1.2, 1.1, 1.309)
    assert family(one, expected=expected).verdict(one, expected) == verdict


def test_comparisons_of_a_script_are_corrected_together_and_equal_arms_widen_the_bound():
    near = quantity("near", 1.1, 1.01, 1.198)
    others = [quantity(f"other {k}", 1.05, 0.9, 1.225) for k in range(3)]
    assert family(near, expected="> 1").verdict(near, "> 1") == "supported"
    assert family(near, *others, expected="> 1").verdict(near, "> 1") == "inconclusive"
    below = "1.2 to 1.4"  # of whose bounds the nearer one decides
    assert family(near, expected=below).verdict(near, below) == "refuted"
    barely = [quantity(f"above {k}", 1.05, 0.9, 1.225) for k in range(3)]
    assert family(near, *barely, expected=below).verdict(near, below) == "inconclusive"
    controls = {"comparisons": [{"name": "arm", "value": 1 / 1.05}], "false_verdicts": 1}
    assert family(near, expected="> 1", controls=controls).verdict(near, "> 1") == "inconclusive"


def recorded(*controls):
    """A result of two ratios, one of which has no value, and of these A/A arms."""
    findings = claims.Findings()
    findings.at_least("x", estimates.Ratio.of([2.0, 2.1, 2.2], [1.0] * 3), 1.1)
    findings.at_least("never", estimates.Ratio.of([2.0, math.inf], [1.0] * 2), 1.1)
    for own, again in controls:
        findings.same("arm", own, again)
    return json.loads(plain_json.dumps(findings.judged(0.0).to_json()))


def test_an_arm_that_did_not_reach_its_goal_has_a_dash_and_no_ratio():
    result = recorded(([1.0, math.inf, 2.0], [1.0, 1.0, 2.0]))
    assert result["controls"]["comparisons"][0]["value"] is None
    assert verdicts.spread_of(result) == 1.0
    assert page.noise(result, result["claims"]) == ""
    assert page.cell(page.first(result, "never")) == "-"
    assert page.ratio(result, "never") is None


def test_an_arm_whose_values_are_not_above_zero_differs_by_a_difference_and_not_by_a_ratio():
    result = recorded(([0.1, 0.11, 0.1, 0.12, 0.0], [0.05, 0.06, 0.05, 0.06, -0.05]))
    assert result["controls"]["false_verdicts"] == 1
    assert verdicts.spread_of(result) == 1.0
    assert page.noise(result, result["claims"]) == ""
    earlier = {"name": "arm", "value": 0.04, "low": -0.07, "high": 0.15}
    result["controls"]["comparisons"] = [earlier]
    assert page.noise(result, result["claims"]) == ""
    result = recorded(([1.2, 1.21, 1.2], [1.0] * 3))
    assert verdicts.spread_of(result) == pytest.approx(1.2, rel=0.01)
    assert "A/A, arm, ratio 1.203" in page.noise(result, result["claims"])


def test_a_count_is_compared_and_a_time_without_interval_decides_nothing():
    count = quantity("lost", 0, None, None, interval=None, timing=False)
    time = quantity("seconds", 0, None, None, interval=None)
    assert family(count, expected="== 0").verdict(count, "== 0") == "supported"
    assert family(count, expected="== 1").verdict(count, "== 1") == "refuted"
    assert family(time, expected="<= 1").verdict(time, "<= 1") == "inconclusive"
    missing = quantity("ratio", None, None, None)
    assert family(missing, expected="> 1").verdict(missing, "> 1") == "not_measured"


def test_a_row_of_many_quantities_counts_them_and_shows_the_worst():
    every = [quantity("a", 1.2, 1.1, 1.309), quantity("b", 0.5, 0.4, 0.625),
             quantity("c", 0.9, 0.85, 0.953)]  # fmt: skip
    results = {"one": {"claims": every, "controls": {"comparisons": [], "false_verdicts": 0}}}
    row = {"claim": "faster", "result": "one", "expected": "> 1"}
    known = page.families({"groups": [{"rows": [row]}]}, results)
    text, verdict = page.measured_of(row, results, known)
    assert verdict == "refuted"
    assert text == "2 of 3 refuted, 1 of 3 supported; worst: b: 0.5 (0.4 to 0.625, n 5)"


def test_the_p_value_of_another_bound_is_that_of_the_recorded_interval():
    recorded = page.first(RESULTS["schemes"], "equal, 1 process: serial 2 threads / sync")
    assert verdicts.p_value(recorded, 1.0) == recorded["p"]
    by_interval = verdicts.p_value({**recorded, "p": None}, 1.0)
    assert by_interval == pytest.approx(recorded["p"], rel=1e-3)


def test_a_number_in_a_text_is_the_quantity_that_it_names():
    results = {
        "one": {"claims": [quantity("a, x", 2.0, 1.6, 2.5)], "controls": {"comparisons": []}}
    }
    text = page.quoted("{one: a, x}; {=one: a}; {1/one: a}; {=1/one: a}", results)
    assert text == "2.00 (1.60 to 2.50, n 5); 2.00; 0.50 (0.40 to 0.63, n 5); 0.50"
    with pytest.raises(LookupError, match=r"one\.json has no quantity that begins with 'b'"):
        page.quoted("{one: b}", results)


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
