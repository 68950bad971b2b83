"""`mlxhog mad tasks`, `suites`, `layers` list all of them; `show` prints one architecture."""

import json

from mlxhog.cli import main
from mlxhog.mad.suites import SUITES, suite
from mlxhog.mad.tasks import BENCHMARK
from mlxhog.models import families
from mlxhog.models.mad.layers import BUILT_IN
from mlxhog.models.mad.sequence import parse
from mlxhog.models.registry import load_candidate


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


def test_show_lists_layers_parameters_states_and_shapes(capsys):
    assert main(["mad", "show", "mlstm(h4) swiglu slstm"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["layers", "mlstm(h4)", "swiglu", "slstm(h4)"]
    assert ["0", "mlstm(h4)", "mixer", "83,848", "4,612", "no"] in lines
    assert ["2", "slstm(h4)", "mixer", "99,072", "512", "no"] in lines
    assert "state cell 4,228, state conv 384" in " ".join(out.split())
    assert "recurrent.weight 4x128x32" in out


def test_show_counts_every_parameter_of_the_model(capsys):
    assert main(["mad", "show", "mad-7to1", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    cfg = load_candidate("mad-7to1")
    assert output["params"] == families.param_count(cfg)
    assert output["params"] == sum(part["params"] for part in output["parts"])
    assert output["state"] == 7 * (4228 + 384) + 512
    assert [part["layer"] for part in output["parts"]] == [None, *range(16), None, None]


def test_show_takes_words_sizes_and_files(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("model: {dim: 32, layers: [mlstm, swiglu]}")
    results = []
    for words in (["mlstm", "swiglu", "--dim", "32"], [str(file)]):
        assert main(["mad", "show", *words, "--vocab", "16", "--seq-len", "20", "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert (results[0]["dim"], results[0]["vocab_size"], results[0]["seq_len"]) == (32, 16, 20)
