"""`mlxhog mad tasks`, `suites`, `layers` list all of them; `show` prints one architecture."""

from mlxhog.cli import main
from mlxhog.mad.suites import SUITES, suite
from mlxhog.mad.tasks import BENCHMARK
from mlxhog.models import families
from mlxhog.models.layers import BUILT_IN
from mlxhog.models.mad.sequence import parse
from mlxhog.models.registry import load_candidate
from tests.cli.command import told


def test_every_task_layer_and_suite_is_listed_with_what_it_is_and_its_numbers(capsys):
    facts = {one["name"]: one for one in told(capsys, "mad", "tasks")}
    for name, task in BENCHMARK.items():
        assert facts[name]["about"] == task.about != ""
        values = {key: one["value"] for key, one in facts[name]["settings"].items()}
        assert task(**values) == task()
    facts = {one["name"]: one for one in told(capsys, "mad", "layers")}
    for layer in BUILT_IN:
        one = facts[layer.name]
        assert (one["kind"], one["about"]) == (layer.kind, layer.about)
        assert "arXiv" in one["source"] or "transformers" in one["source"]
        for name, number in one["numbers"].items():
            value = str(number["default"]).lower()
            assert parse(f"{layer.name}({name}={value})") == parse(layer.name)
    facts = {one["name"]: one for one in told(capsys, "mad", "suites")}
    assert list(facts) == list(SUITES)
    for name, one in facts.items():
        assert (one["runs"], one["dim"]) == (suite(name).runs, suite(name).dim)
        assert sum(one["tasks"].values()) == suite(name).runs
        assert one["about"] != ""
    assert main(["mad", "suites"]) == 0
    assert "compression 66, memorization 36" in capsys.readouterr().out


def test_show_lists_layers_parameters_states_and_shapes_at_given_sizes(capsys):
    assert main(["mad", "show", "mlstm(h4) swiglu slstm"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["layers", "mlstm(h4)", "swiglu", "slstm(h4)"]
    assert ["0", "mlstm(h4)", "mixer", "83,848", "4,612", "no"] in lines
    assert ["2", "slstm(h4)", "mixer", "99,072", "512", "no"] in lines
    assert "state cell 4,228, state conv 384" in " ".join(out.split())
    assert "recurrent.weight 4x128x32" in out
    output = told(capsys, "mad", "show", "mad-7to1")
    assert output["params"] == families.param_count(load_candidate("mad-7to1"))
    assert output["params"] == sum(part["params"] for part in output["parts"])
    assert output["state"] == 7 * (4228 + 384) + 512
    assert [part["layer"] for part in output["parts"]] == [None, *range(16), None, None]
    sizes = "--dim 32 --vocab 16 --seq-len 20".split()
    output = told(capsys, "mad", "show", "mlstm", "swiglu", *sizes)
    assert (output["dim"], output["vocab_size"], output["seq_len"]) == (32, 16, 20)


def test_show_reads_a_line_at_the_width_that_is_asked_for(capsys):
    assert told(capsys, "mad", "show", "mh-attention(h3)", "--dim", "96")["dim"] == 96
