"""A candidate in a YAML file is a language model for every command."""

import json

import pytest

from mlxhog.checkpoint import checkpoint
from mlxhog.cli import main
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models.registry import load_candidate
from mlxhog.training.supervisor.training import train
from tests.cli.command import said
from tests.saved import saved_run
from tests.training.small import small_config

LAYERS = "mh-attention(h4) mlp mlstm(h2) moe-swiglu slstm(h2) hyena(expand=1) gla(h2) swiglu"
AUTOENCODER = "dim: 16, backbone: autoencoder, layers: mlstm"


def candidate(folder, fields=f"dim: 32, layers: '{LAYERS}'"):
    path = folder / "winner.yaml"
    path.write_text(f"{{{fields}}}\n")
    return str(path)


def test_another_candidate_does_not_go_on_from_a_run(tmp_path):
    model = candidate(tmp_path)
    run = train(small_config(tmp_path, model=model, workers="mlx:cpu", steps=1)).run
    wide = LAYERS.replace("(h2)", "(h4)")
    for layers, message in (
        ("mlstm swiglu", "layers has 8 items there and 2 here"),
        (wide, r"layers\[2\] is {'type': 'mlstm', 'heads': 2, 'conv': 4"),
    ):
        other = candidate(tmp_path, f"dim: 32, layers: '{layers}'")
        with pytest.raises(CheckpointError, match=message):
            train(small_config(tmp_path, model=other, steps=2, resume=str(run)))


def compared(capsys, model, words):
    """What parity finds; sides in this process write lines of theirs before it."""
    out, _ = said(capsys, "parity", model, *words.split(), "--json")
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_parity_compares_everything_with_the_reference_too(tmp_path, capsys):
    small = "--seq-len 9 --batch-size 1 --steps 1"
    result = compared(capsys, candidate(tmp_path), small)
    assert result["ok"]
    seen = {row["what"].split("/")[0] for row in result["rows"] if row["b"] == "numpy"}
    precision = {"products", "chain", "gates"}
    kinds = {"hidden", "logits", "loss", "grad", "state", "stepwise", "after"}
    assert precision | kinds <= seen


@pytest.mark.usefixtures("sides_here")
def test_an_autoencoder_agrees_on_every_backend_and_is_no_language_model(tmp_path, capsys):
    small = "--seq-len 9 --batch-size 1 --steps 0 --kernels auto"
    result = compared(capsys, candidate(tmp_path, AUTOENCODER), small)
    assert result["ok"]
    assert "hidden/out_norm" in {row["what"] for row in result["rows"]}
    assert not any(row["what"].startswith("stepwise") for row in result["rows"])
    with pytest.raises(ConfigError, match="backbone is autoencoder: .*mlxhog mad train"):
        train(small_config(tmp_path, model=candidate(tmp_path, AUTOENCODER)))


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_text_and_sequences_end_where_the_positions_do(tmp_path, position, capsys):
    model = candidate(tmp_path, f"dim: 16, position: {position}, max_length: 12, layers: mlstm")
    run = saved_run(tmp_path / "runs", "untrained", load_candidate(model))
    words = ["generate", str(checkpoint.latest(run)), "--prompt", "lock", "--max-new-tokens"]
    assert main([*words, "8"]) == 0
    assert main([*words, "9"]) == 2
    assert "13 tokens, but the model has 12 positions" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="32 tokens, but the model has 12 positions"):
        train(small_config(tmp_path, model=model))
