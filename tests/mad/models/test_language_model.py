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
MIXED = {"workers": "torch:cpu,mlx:cpu", "eval_every": "1h", "steps": 25}
AUTOENCODER = "dim: 16, backbone: autoencoder, layers: mlstm"


def candidate(folder, fields=f"dim: 32, layers: '{LAYERS}'"):
    path = folder / "winner.yaml"
    path.write_text(f"version: 1\nmodel: {{{fields}}}\n")
    return str(path)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The result of a run with workers of both frameworks."""
    folder = tmp_path_factory.mktemp("winner")
    result = train(small_config(folder, model=candidate(folder), **MIXED))
    assert result.status == "done"
    return result


def told(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])  # MLX's backend says its BLAS


@pytest.mark.slow
def test_a_candidate_learns_with_workers_of_both_frameworks_and_goes_on(first, tmp_path):
    shutil.copytree(first.run, tmp_path / "run")
    again = {"model": candidate(tmp_path), "resume": str(tmp_path / "run"), "workers": "mlx:cpu*2"}
    second = train(small_config(tmp_path, **{**MIXED, **again}))
    assert second.status == "done"
    # a uniform guess has 8.3
    assert second.val_bits_per_byte < first.val_bits_per_byte < 7.5


@pytest.mark.slow
def test_a_checkpoint_is_the_architecture_it_was_trained_with(first, capsys):
    path = Path(first.checkpoint)
    assert {"model.safetensors", "config.json"} <= {file.name for file in path.iterdir()}
    cfg = load_candidate(path)
    assert told(capsys, "mad", "show", str(path))["layers"] == LAYERS
    assert (cfg.vocab_size, cfg.bos_token_id) == (320, 256)
    assert checkpoint.load(path).params.keys() == param_spec(cfg).keys()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_prompts_of_different_lengths_are_answered_together_as_alone(
    first, backend, capsys, tmp_path
):
    prompts = ["lock free", "adds", "never wait for a lock that is long gone"]
    file = tmp_path / "prompts.txt"

    def texts(*lines):
        file.write_text("\n".join(lines) + "\n")
        how = f"--prompt-file {file} --max-new-tokens 9 --temperature 0 --backend {backend}"
        answers = told(capsys, "generate", str(first.checkpoint), *how.split())["answers"]
        return [answer["text"] for answer in answers]

    assert texts(*prompts) == [texts(prompt)[0] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("mlstm swiglu", "layers has 8 items there and 2 here"),
        (LAYERS.replace("(h2)", "(h4)"), r"layers\[2\] is {'type': 'mlstm', 'heads': 2, 'conv': 4"),
    ],
)
def test_another_candidate_does_not_go_on_from_the_checkpoint(first, tmp_path, layers, message):
    other = candidate(tmp_path, f"dim: 32, layers: '{layers}'")
    with pytest.raises(CheckpointError, match=message):
        train(small_config(tmp_path, model=other, steps=2, resume=str(first.run)))


@pytest.mark.slow
@pytest.mark.usefixtures("sides_here")
def test_parity_compares_everything_with_the_reference_too(tmp_path, capsys):
    small = "--seq-len 9 --batch-size 1 --steps 1"
    result = told(capsys, "parity", candidate(tmp_path), *small.split())
    assert result["ok"]
    compared = {row["what"].split("/")[0] for row in result["rows"] if row["b"] == "numpy"}
    precision = {"products", "chain", "gates", "tiny"}
    kinds = {"hidden", "logits", "loss", "grad", "state", "stepwise", "after"}
    assert precision | kinds <= compared


@pytest.mark.usefixtures("sides_here")
def test_an_autoencoder_agrees_on_every_backend_and_is_no_language_model(tmp_path, capsys):
    small = "--seq-len 9 --batch-size 1 --steps 0 --kernels auto"
    result = told(capsys, "parity", candidate(tmp_path, AUTOENCODER), *small.split())
    assert result["ok"]
    assert {"hidden/decoder.0", "hidden/decoder.1"} <= {row["what"] for row in result["rows"]}
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
