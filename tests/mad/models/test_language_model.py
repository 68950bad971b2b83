"""A candidate in a YAML file is a language model for every command."""

import json
import shutil
from pathlib import Path

import pytest

from mlxhog import train
from mlxhog.checkpoint import checkpoint
from mlxhog.cli import main
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models.families import param_spec
from mlxhog.models.registry import load_candidate
from tests.saved import saved_run
from tests.training.small import small_config

LAYERS = "mh-attention(h4) mlp mlstm(h2) moe-swiglu slstm(h2) hyena(expand=1) gla(h2) swiglu"
WINNER = f"version: 1\nmodel: {{dim: 32, layers: '{LAYERS}'}}\n"


def candidate(folder, text=WINNER):
    path = folder / "winner.yaml"
    path.write_text(text)
    return str(path)


MIXED = {"workers": "torch:cpu,mlx:cpu", "eval_every": "1h", "steps": 25}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The result of a run with workers of both frameworks."""
    folder = tmp_path_factory.mktemp("winner")
    result = train(small_config(folder, model=candidate(folder), **MIXED))
    assert result.status == "done"
    return result


@pytest.fixture(scope="module")
def trained(first):
    """That run, and its checkpoint."""
    assert first.checkpoint is not None
    return Path(first.run), Path(first.checkpoint)


def told(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])  # MLX's backend says its BLAS


def texts(capsys, model, backend, prompts):
    """Greedy answers to a batch of prompts."""
    lines = model.parent / "prompts.txt"
    lines.write_text("\n".join(prompts) + "\n")
    result = told(
        capsys,
        *("generate", str(model), "--prompt-file", str(lines), "--max-new-tokens", "9"),
        *("--temperature", "0", "--backend", backend),
    )
    return [answer["text"] for answer in result["answers"]]


@pytest.mark.slow
def test_a_candidate_learns_with_workers_of_both_frameworks_and_goes_on(first, tmp_path):
    shutil.copytree(first.run, tmp_path / "run")
    again = {"model": candidate(tmp_path), "resume": str(tmp_path / "run"), "workers": "mlx:cpu*2"}
    second = train(small_config(tmp_path, **{**MIXED, **again}))
    assert second.status == "done"
    assert first.val_bits_per_byte is not None
    assert second.val_bits_per_byte is not None
    assert second.val_bits_per_byte < first.val_bits_per_byte < 7.5  # a uniform guess has 8.3


@pytest.mark.slow
def test_a_checkpoint_is_the_architecture_it_was_trained_with(trained, capsys):
    _, path = trained
    assert {"model.safetensors", "config.json"} <= {file.name for file in path.iterdir()}
    cfg = load_candidate(path)
    assert told(capsys, "mad", "show", str(path))["layers"] == LAYERS
    assert (cfg.vocab_size, cfg.bos_token_id) == (320, 256)
    assert checkpoint.load(path).params.keys() == param_spec(cfg).keys()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_prompts_of_different_lengths_are_answered_together_as_alone(trained, backend, capsys):
    prompts = ["lock free", "adds", "never wait for a lock that is long gone"]
    together = texts(capsys, trained[1], backend, prompts)
    alone = [texts(capsys, trained[1], backend, [prompt])[0] for prompt in prompts]
    assert together == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("mlstm swiglu", "layers has 8 items there and 2 here"),
        (
            LAYERS.replace("(h2)", "(h4)"),
            r"layers\[2\] is {'type': 'mlstm', 'heads': 2, 'conv': 4,",
        ),
    ],
)
def test_another_candidate_does_not_go_on_from_the_checkpoint(trained, tmp_path, layers, message):
    other = candidate(tmp_path, f"model: {{dim: 32, layers: '{layers}'}}")
    with pytest.raises(CheckpointError, match=message):
        train(small_config(tmp_path, model=other, steps=2, resume=str(trained[0])))


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_parity_compares_everything_with_the_reference_too(tmp_path, capsys):
    small = ["--seq-len", "9", "--batch-size", "1", "--steps", "1"]
    result = told(capsys, "parity", candidate(tmp_path), *small)
    assert result["ok"]
    compared = {row["what"].split("/")[0] for row in result["rows"] if row["b"] == "numpy"}
    precision = {"products", "chain", "gates", "tiny"}
    kinds = {"hidden", "logits", "loss", "grad", "state", "stepwise", "after"}
    assert precision | kinds <= compared


AUTOENCODER = "model: {dim: 16, backbone: autoencoder, layers: mlstm}"


@pytest.mark.usefixtures("sides_here")
def test_an_autoencoder_agrees_on_every_backend(tmp_path, capsys):
    small = ["--seq-len", "9", "--batch-size", "1", "--steps", "0", "--kernels", "auto"]
    result = told(capsys, "parity", candidate(tmp_path, AUTOENCODER), *small)
    assert result["ok"]
    assert {"hidden/decoder.0", "hidden/decoder.1"} <= {row["what"] for row in result["rows"]}
    assert not any(row["what"].startswith("stepwise") for row in result["rows"])


def test_an_autoencoder_is_no_language_model(tmp_path):
    with pytest.raises(ConfigError, match="backbone is autoencoder: .*mlxhog mad train"):
        train(small_config(tmp_path, model=candidate(tmp_path, AUTOENCODER)))


def saved(folder, text):
    """The checkpoint of an untrained candidate."""
    cfg = load_candidate(candidate(folder, text))
    return str(checkpoint.latest(saved_run(folder / "runs", "untrained", cfg)))


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_text_ends_where_the_positions_do(tmp_path, position, capsys):
    text = f"model: {{dim: 16, position: {position}, max_length: 12, layers: mlstm}}"
    words = ["generate", saved(tmp_path, text), "--prompt", "lock", "--max-new-tokens"]
    assert main([*words, "8"]) == 0
    assert main([*words, "9"]) == 2
    assert "13 tokens, but the model has 12 positions" in capsys.readouterr().err


def test_sequences_end_where_the_positions_do(tmp_path):
    text = "model: {dim: 16, position: learned, max_length: 30, layers: mlstm}"
    with pytest.raises(ConfigError, match="32 tokens, but the model has 30 positions"):
        train(small_config(tmp_path, model=candidate(tmp_path, text)))
