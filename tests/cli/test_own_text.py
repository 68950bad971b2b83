"""A user's own text, tokenizer and size in one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlxhog.cli import main

SIZE = "--model 5m --set hidden_size=32 --set num_hidden_layers=1 --seq-len 32 --batch-size 2"
REST = "--workers mlx:cpu --threads 1 --steps 4 --sample-every off --json"


@pytest.mark.slow
def test_one_command_trains_a_size_of_ones_own_on_text_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    words = np.random.default_rng(0).choice(["lock", "free", "adds", "never", "wait"], 6000)
    for k in range(6):
        Path("notes", f"{k}.txt").write_text(" ".join(words[k * 1000 : (k + 1) * 1000]))
    Path("notes", "6.jsonl").write_text(json.dumps({"content": "one more"}) + "\n")
    command = f"train --data notes --tokenizer bpe:300 {SIZE} {REST}".split()
    assert main(command) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["status"], result["steps"]) == ("done", 4)
    config = json.loads((Path(result["checkpoint"]) / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (32, 1)
    assert config["vocab_size"] == 320
    last = json.loads(Path(result["run"], "metrics.jsonl").read_text().splitlines()[-1])
    assert {"unigram", "gzip", "xz"} <= last["marks"].keys()
    assert "learnt" in err  # so few words have fewer pairs

    assert main(["models", "5m", "--set", "hidden_size=32", "--set", "num_hidden_layers=1"]) == 0
    Path("my.yaml").write_text(capsys.readouterr().out)
    command = f"train --resume {result['run']} --model my.yaml --set none {REST}".split()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 8
