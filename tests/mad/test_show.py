"""`mlxhog mad show` prints the parts of an architecture."""

import json

from mlxhog.cli import main
from mlxhog.models import families
from mlxhog.models.registry import load_candidate


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
