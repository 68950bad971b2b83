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
from tests.checkpoint.formats import peers
from tests.tolerances import LOGITS_F32, assert_close


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
    logits = model.logits(ids)
    assert logits.dtype == np.float32
    assert_close(logits, expected.numpy(), LOGITS_F32)
    both = model.logits(np.array([ids, ids[::-1]], np.uint16))
    assert both.shape == (2, *logits.shape)
    assert_close(both[0], logits, LOGITS_F32)


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
