"""`mlxhog models` lists architectures and prints files; `train` takes a user's own size."""

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.cli import main
from mlxhog.models.registry import architectures, load_architecture


def test_the_list_has_every_architecture_and_fits_a_terminal(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines[1 : len(architectures()) + 1]}
    assert named == set(architectures())
    assert max(map(len, lines)) <= 80
    assert main(["models", "--json"]) == 0
    (row,) = [one for one in json.loads(capsys.readouterr().out) if one["name"] == "tiny"]
    assert row == {
        "name": "tiny", "family": "xlstm", "parameters": 939_680, "hidden_size": 128, "blocks": 4,
        "vocab_size": 320,
    }  # fmt: skip


@pytest.mark.parametrize("words", [["10m"], ["7to1-tiny", "--set", "hidden_size=64"]])
def test_what_it_prints_is_the_model(words, tmp_path, capsys):
    assert main(["models", *words]) == 0
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    cfg = load_architecture(words[0], words[2] if len(words) > 1 else None)
    assert load_architecture(tmp_path / "my.yaml") == cfg


SIZE = "--model 5m --set hidden_size=32 --set num_hidden_layers=1 --seq-len 32 --batch-size 2"
REST = "--workers mlx:cpu --threads 1 --steps 4 --sample-every off --json"


@pytest.mark.slow
def test_one_command_trains_a_size_of_ones_own_on_text_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    words = np.random.default_rng(0).choice(["lock", "free", "adds", "never", "wait"], 6000)
    for k in range(6):
        Path("notes", f"{k}.txt").write_text(" ".join(words[k * 1000 : (k + 1) * 1000]))
    Path("notes", "6.jsonl").write_text(json.dumps({"content": "one more"}) + "\n")
    assert main(f"train --data notes --tokenizer bpe:300 {SIZE} {REST}".split()) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["status"], result["steps"]) == ("done", 4)
    config = json.loads((Path(result["checkpoint"]) / "config.json").read_text())
    sizes = [config[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")]
    assert sizes == [32, 1, 320]
    assert "learnt" in err  # a short text has fewer pairs
    assert main(["models", "5m", "--set", "hidden_size=32", "--set", "num_hidden_layers=1"]) == 0
    Path("my.yaml").write_text(capsys.readouterr().out)
    command = f"train --resume {result['run']} --model my.yaml --set none {REST}".split()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 8
