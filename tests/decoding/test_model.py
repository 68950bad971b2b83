"""A checkpoint writes text on every backend, and the command prints it."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from mlxhog import load
from mlxhog.cli import main
from mlxhog.data.tokenizers import train_bpe
from mlxhog.decoding.options import Sampling
from tests import saved
from tests.checkpoint.formats import peers
from tests.tolerances import LOGITS_F32, assert_close


@pytest.fixture
def saved_run(tmp_path):
    """A run with a checkpoint of a tiny model that has learnt nothing."""
    return saved.saved_run(tmp_path / "runs")


def answer(result, backend, **sampling):
    model = load(result.name, out=result.directory.parent, backend=backend)
    return model.generate("The ", max_new_tokens=40, **{"temperature": 1.0, **sampling})


def test_a_seed_writes_its_text_twice_and_both_frameworks_choose_the_same_likeliest_tokens(
    saved_run,
):
    backends = ("torch:cpu", "mlx:cpu")
    for backend in backends:
        first = answer(saved_run, backend, seed=1)
        assert first == answer(saved_run, backend, seed=1) != answer(saved_run, backend, seed=2)
    assert len({answer(saved_run, name, temperature=0.0) for name in backends}) == 1


@pytest.fixture
def hf(tmp_path):
    """A directory of transformers with a vocabulary of its own, in bfloat16."""
    folder = tmp_path / "hf"
    tokenizer = train_bpe([b"the constitution of the united states " * 20], 300)
    torch.manual_seed(0)
    model = peers.transformers_model(vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.files()["tokenizer.json"])
    return folder


@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_a_directory_of_transformers_writes_what_transformers_would(hf, backend):
    model = load(hf, backend=backend)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    ids = [model.tokenizer.bos, *model.tokenizer.encode(b"the states")]
    assert ids[0] == json.loads((hf / "config.json").read_text())["bos_token_id"]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids]), use_cache=False).logits[0]
    assert_close(model.logits(ids), expected.numpy(), LOGITS_F32)


@pytest.mark.parametrize("as_list", [False, True])
def test_the_end_token_of_a_config_ends_the_answer(hf, as_list):
    def said():
        sampling = Sampling(temperature=0.0, max_new_tokens=8)
        return [one.token for one in load(hf, backend="torch").answer(["The "], sampling)]

    path = hf / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"eos_token_id": None}))
    whole = said()
    end = whole[3]
    path.write_text(json.dumps(fields | {"eos_token_id": [end, 0] if as_list else end}))
    assert said() == [*whole[: whole.index(end)], None]


def test_a_tokenizer_that_is_missing_or_larger_than_the_model_is_refused(hf, capsys):
    peers.transformers_model(vocab_size=50).save_pretrained(hf)
    assert main(["generate", str(hf), "--prompt", "a"]) == 2
    assert "copy the model's own tokenizer there" in capsys.readouterr().err
    (hf / "tokenizer.json").unlink()
    assert main(["generate", str(hf), "--prompt", "a"]) == 2
    assert "has no tokenizer.json, so no text can be read" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["torch:cpu", "mlx:cpu"])
def test_numbers_that_are_not_finite_are_named_before_any_text(hf, backend, capsys):
    arrays = {name: a.copy() for name, a in load_file(hf / "model.safetensors").items()}
    arrays["backbone.out_norm.weight"][3] = np.inf
    save_file(arrays, hf / "model.safetensors")
    assert main(["generate", str(hf), "--backend", backend]) == 2
    out, err = capsys.readouterr()
    assert "backbone.out_norm.weight has numbers that are not finite" in err
    assert out == ""
