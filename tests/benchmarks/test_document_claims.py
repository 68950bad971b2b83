"""The verdicts of recorded experiments follow from their recorded numbers, computed anew."""

import json
import math
from ast import literal_eval
from pathlib import Path

import pytest

FULL = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "full"


def schemes(load, one):
    trained = {
        (row["condition"], row["scheme"], row["workers"]): row["runs"]
        for row in one["results"]["trainings"]
    }
    scale = load("experiment.record").Scale("full", seeds=tuple(one["seeds"]))
    return load("schemes").outcome(scale, trained, one["settings"]["searched"], 0.0)


def minute(load, one):
    bits = one["results"]["bits_per_byte"]
    return load("defaults").minute_outcome(bits, next(iter(bits.values())), {})


def widths(load, one):
    module, rows = load("defaults"), one["results"]["bits_per_byte"]
    middle = {(rule, width): module.optimizers.by_name(rule).default_lr(width)
              for rule, width, *_ in rows}  # fmt: skip
    ends = {(rule, width, round(lr / middle[rule, width], 3), seed): bits
            for rule, width, lr, seed, bits in rows}  # fmt: skip
    again = [ends["muon", rows[0][1], 1.0, seed] for seed in one["seeds"]]
    return module.widths_outcome(ends, again, {}, tuple(one["seeds"]))


def ngram_tables(load, one):
    bits = {}
    for name, own in one["results"]["bits_per_byte"].items():
        model, strategy, count = name.split(", ")
        bits[model, strategy, literal_eval(count)] = own
    first = next(iter(bits.values()))
    return load("defaults").ngram_outcome(bits, first, {}, tuple(one["seeds"]))


def lock_free_schedules(load, one):
    bits = {(row["optimizer"], row["schedule"]): row["bits"] for row in one["results"]["bits"]}
    return load("defaults").schedules_outcome(bits, one["settings"])


RECOMPUTED = (schemes, minute, widths, ngram_tables, lock_free_schedules)


@pytest.mark.parametrize("recompute", RECOMPUTED, ids=lambda one: one.__name__)
def test_the_verdicts_of_a_result_follow_from_its_numbers(load, recompute):
    known = json.loads((FULL / f"{recompute.__name__}.json").read_text())
    outcome = load("experiment.record").together_corrected(recompute(load, known))
    assert [one.to_json()["verdict"] for one in outcome.compared] == [
        one["verdict"] for one in known["compared"]
    ]
    for one, other in zip(outcome.compared, known["compared"], strict=True):
        assert [numbers(claim.to_json()) for claim in one.rests_on] == [
            pytest.approx(numbers(claim), rel=1e-3, nan_ok=True) for claim in other["rests_on"]
        ]
    assert {claim.name: claim.ended for claim in outcome.claims} == {
        claim["name"]: claim["ended"] for claim in known["claims"]
    }
    names = [one["name"] for one in known["table"]] if "name" in known["table"][0] else []
    assert len(outcome.table) == len(known["table"])
    assert names == [row["name"] for row in outcome.table if "name" in row]


def numbers(claim):
    """A claim's value, interval and limit; NaN for those that are not finite."""
    own = [claim["value"], *(claim["interval"] or ()), claim["limit"]]
    return [math.nan if one is None or not math.isfinite(one) else one for one in own]


@pytest.mark.parametrize(("gap", "expected"), [(0.05, "holds"), (-0.05, "does not hold")])
def test_a_claim_of_a_document_can_come_out_either_way(load, gap, expected):
    clients, course = load("clients"), load("experiment.digits").Course
    noise = [0.001, -0.001, 0.0005, 0.0, -0.0005]

    def runs(accuracy):
        return [course(accuracy=[accuracy + own] * 3, network_bytes=[1]) for own in noise]

    by = {alpha: {"local_sgd": runs(0.7), "fedprox": runs(0.75), "scaffold": runs(0.75 + gap)}
          for alpha in (1.0, 0.01)}  # fmt: skip
    record = load("experiment.record")
    compared = clients.compared(by, {"document": 0.0, "ours": 0.3})
    ended = record.together_corrected(record.Outcome(compared=compared, table=[])).compared
    verdicts = {one.claim: one.verdict for one in ended}
    assert verdicts["SCAFFOLD is better than FedProx at every division"] == expected
