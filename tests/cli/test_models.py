"""`mlxhog models` lists architectures and prints files; `train` takes a user's own size."""

import pytest

from mlxhog.models.registry import architectures, load_architecture
from tests.cli.command import said, told


def test_the_list_has_every_architecture_and_fits_a_terminal(capsys):
    lines = said(capsys, "models").out.splitlines()
    named = {line.split()[0] for line in lines[1 : len(architectures()) + 1]}
    assert named == set(architectures())
    assert max(map(len, lines)) <= 80
    (row,) = [one for one in told(capsys, "models") if one["name"] == "tiny"]
    assert row == {
        "name": "tiny", "family": "xlstm", "parameters": 939_680, "hidden_size": 128, "blocks": 4,
        "vocab_size": 320,
    }  # fmt: skip


@pytest.mark.parametrize("words", [["10m"], ["7to1-tiny", "--set", "hidden_size=64"]])
def test_what_it_prints_is_the_model(words, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(said(capsys, "models", *words).out)
    cfg = load_architecture(words[0], words[2] if len(words) > 1 else None)
    assert load_architecture(tmp_path / "my.yaml") == cfg
