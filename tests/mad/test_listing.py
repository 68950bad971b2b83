"""`mlxhog mad tasks`, `suites` and `layers` list all of them."""

import json

from mlxhog.cli import main
from mlxhog.mad.suites import SUITES, suite
from mlxhog.mad.tasks import BENCHMARK
from mlxhog.models.mad.layers import BUILT_IN
from mlxhog.models.mad.sequence import parse


def listed(capsys, *words):
    assert main(["mad", *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    return facts


def test_every_task_is_listed_with_what_it_tests_and_its_baseline(capsys):
    facts = {one["name"]: one for one in listed(capsys, "tasks")}
    assert BENCHMARK.keys() <= facts.keys()
    for name, task in BENCHMARK.items():
        assert facts[name]["about"] == task.about != ""
        values = {key: one["value"] for key, one in facts[name]["settings"].items()}
        assert task(**values) == task()


def test_every_layer_is_listed_with_a_line_a_source_and_numbers_that_can_be_set(capsys):
    facts = {one["name"]: one for one in listed(capsys, "layers")}
    for layer in BUILT_IN:
        one = facts[layer.name]
        assert one["kind"] == layer.kind
        assert one["about"] == layer.about != ""
        assert "arXiv" in one["source"] or "transformers" in one["source"]
        for name, number in one["numbers"].items():
            value = str(number["default"]).lower()
            assert parse(f"{layer.name}({name}={value})") == parse(layer.name)


def test_every_suite_is_listed_with_its_runs_and_what_it_measures(capsys):
    facts = listed(capsys, "suites")
    assert [one["name"] for one in facts] == list(SUITES)
    for one in facts:
        chosen = suite(one["name"])
        assert (one["runs"], one["dim"]) == (chosen.runs, chosen.dim)
        assert sum(one["tasks"].values()) == chosen.runs
        assert one["about"] != ""
    assert main(["mad", "suites"]) == 0
    assert "compression 66, memorization 36" in capsys.readouterr().out
