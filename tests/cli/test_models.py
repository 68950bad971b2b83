"""`mlxhog models` lists architectures, and prints one as a file that `train` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxhog.cli import main
from mlxhog.models.registry import architectures, load_architecture


def test_the_list_has_every_architecture_and_fits_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "family", "parameters"]
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
def test_what_it_prints_is_the_model(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *words]) == 0
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    cfg = load_architecture(words[0], words[2] if len(words) > 1 else None)
    assert load_architecture(tmp_path / "my.yaml") == cfg
    assert main(["models", str(tmp_path / "my.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hidden_size"] == cfg.hidden_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tinny", "no architecture 'tinny'"),
        ("tiny --set hiden_size=2", "did you mean 'hidden_size'?"),
        ("--set hidden_size=2", "--set is for one model; name it"),
        ("tiny --jsn", "no flag '--jsn'; did you mean '--json'?"),
    ],
)
def test_bad_input_is_answered(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
