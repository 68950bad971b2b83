"""What a user of transformers does with an export of a sequence of layers."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

from mlxhog.base import reading, tensors
from mlxhog.checkpoint import checkpoint, formats
from mlxhog.checkpoint.formats import contents
from mlxhog.checkpoint.formats.converting import convert, token_ids
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models import families, lm_float64
from mlxhog.nn.torch import LanguageModel
from tests.checkpoint.formats.peers import NATIVE, OF_A_GPU
from tests.pairs import each_of
from tests.saved import SMALL, saved_run

MAX_LENGTH = 77


def layers(**fields):
    model = {"dim": 16, "layers": "mlstm(h2) swiglu(inner=16)", "max_length": MAX_LENGTH}
    return families.read(model | {"position": "learned"} | fields)


def exported(folder, model):
    run = saved_run(folder / "runs", model=model)
    convert(formats.open(run.model.resolve()), folder / "e", "hf")
    return folder / "e"


def fields(folder, name="config.json"):
    return json.loads((folder / name).read_bytes())


@pytest.mark.parametrize("model", [layers(), SMALL], ids=["layers", "xlstm"])
def test_an_export_names_the_tokens_that_end_and_pad_a_text_and_the_ids_without_one(
    tmp_path, model
):
    folder = exported(tmp_path, model)
    names = fields(folder, "tokenizer_config.json")
    assert names["bos_token"] == names["eos_token"] == names["pad_token"]
    config = fields(folder)
    assert config["eos_token_id"] == config["pad_token_id"] == ByteTokenizer().bos
    unused = list(range(ByteTokenizer.n_ids, ByteTokenizer.vocab_size))
    assert fields(folder, "generation_config.json")["suppress_tokens"] == unused
    assert checkpoint.read_model(folder)[0].vocab_size == ByteTokenizer.vocab_size


def test_tokens_are_counted_in_each_kind_of_vocabulary():
    for vocabulary in (b'{"a": 0, "b": 2}', b'[["a", -1.0], ["b", -2.0]]'):
        text = b'{"model": {"vocab": %s}, "added_tokens": [{"id": 5}]}' % vocabulary
        assert token_ids(text, Path()) - {1, 2} == {0, 5}


def test_tokens_of_a_tokenizer_that_is_larger_than_our_own_json_are_counted(monkeypatch):
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 8)
    assert token_ids(b'{"model": {"vocab": {"a": 0, "b": 2}}}', Path()) == {0, 2}


def test_an_export_of_a_run_that_began_with_kernels_of_the_package_has_those_of_every_machine(
    tmp_path,
):
    opened = formats.open(saved_run(tmp_path / "runs").model.resolve())
    earlier = replace(opened, config=families.read(SMALL.to_dict() | OF_A_GPU))
    convert(earlier, tmp_path / "hf", "hf")
    written = fields(tmp_path / "hf")
    assert {name: written[name] for name in contents.PORTABLE} == contents.PORTABLE


RESETS = {"reset_at_document_boundaries": True, "bos_token_id": 256}


def test_transformers_takes_its_own_class_for_no_model_with_document_resets(tmp_path):
    folder = exported(tmp_path, replace(SMALL, **RESETS))
    assert fields(folder)["architectures"] == ["MlxhogForCausalLM"]
    (run,) = (tmp_path / "runs").iterdir()
    assert "model_type" not in fields(run / "model")
    assert formats.open(folder).config.reset_at_document_boundaries
    assert formats.open((run / "model").resolve()).config.reset_at_document_boundaries


@pytest.mark.parametrize("family", ["large", "v1"])
def test_a_model_with_document_resets_is_no_model_of_the_package(tmp_path, family):
    model = replace(SMALL if family == "large" else families.read(V1), **RESETS)
    run = saved_run(tmp_path / "runs", model=model)
    says = "the xlstm package has no model .*with reset_at_document.*; use --format hf or mlxhog"
    with pytest.raises(ConfigError, match=says):
        convert(formats.open(run.model.resolve()), tmp_path / "out", "xlstm")
    assert not (tmp_path / "out").exists()


def test_the_package_gets_a_bias_of_the_final_norm_only_with_other_biases(tmp_path):
    model, name = replace(SMALL, out_norm_bias=True), "backbone.out_norm.bias"
    params = families.init_params(model, seed=0)
    run = saved_run(tmp_path / "zeros", model=model, params=params)
    convert(formats.open(run.model.resolve()), tmp_path / "out", "xlstm")
    sizes = {"vocab_size": 320, "embedding_dim": 32, "num_blocks": 2, "num_heads": 2}
    theirs = xLSTMLarge(xLSTMLargeConfig(**sizes, **NATIVE))
    theirs.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"), strict=True)
    params[name] = np.ones_like(params[name])
    run = saved_run(tmp_path / "ones", model=model, params=params)
    with pytest.raises(ConfigError, match="no bias in the final norm .*; use --format hf or mlxh"):
        convert(formats.open(run.model.resolve()), tmp_path / "refused", "xlstm")
    assert not (tmp_path / "refused").exists()


def test_unknown_fields_of_a_config_survive_both_directions(tmp_path):
    folder = exported(tmp_path, layers())
    changed = fields(folder) | {"mine": [1], "pad_token_id": 7}
    (folder / "config.json").write_text(json.dumps(changed))
    convert(formats.open(folder), tmp_path / "ours", "mlxhog")
    convert(formats.open(tmp_path / "ours"), tmp_path / "again", "hf")
    for written in (fields(tmp_path / "ours"), fields(tmp_path / "again")):
        assert (written["mine"], written["pad_token_id"]) == ([1], 7)
        assert written["eos_token_id"] == ByteTokenizer().bos
    assert "auto_map" not in fields(tmp_path / "ours")
    assert "auto_map" in fields(tmp_path / "again")


@pytest.mark.parametrize("name", ["embedding", "head"])
def test_tied_weights_load_from_either_name(tmp_path, name):
    model = replace(SMALL, tie_word_embeddings=True)
    run = saved_run(tmp_path, model=model)
    whole = dict(tensors.read(run.model / "model.safetensors"))
    other = model.untied_head if name == "embedding" else families.embedding(model)
    expected = whole.pop(other)
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "config.json").write_bytes((run.model / "config.json").read_bytes())
    tensors.write(folder / "model.safetensors", whole)
    opened = formats.open(folder)
    np.testing.assert_array_equal(opened.tensors[families.embedding(model)], expected)


def test_a_tensor_that_save_model_wrote_once_has_all_its_names(tmp_path):
    module = LanguageModel(layers(vocab_size=20))
    module.get_parameter("head.weight").data.copy_(module.get_parameter("embedding.weight"))
    module.get_submodule("head").weight = module.get_parameter("embedding.weight")  # shared
    save_model(module, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(module.architecture.to_dict()))
    opened = formats.open(tmp_path)
    for name in ("head.weight", "embedding.weight"):
        expected = module.get_parameter("embedding.weight").detach().numpy()
        np.testing.assert_array_equal(opened.tensors[name], expected)
    load_model(module, tmp_path / "model.safetensors")


@pytest.fixture
def transformers(tmp_path, monkeypatch):
    package = pytest.importorskip("transformers", reason="the extra [peers]")
    dynamic = importlib.import_module("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return package


def loaded(transformers, folder, **how):
    how["trust_remote_code"] = True
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **how), tokenizer


@pytest.mark.slow
def test_generate_takes_what_the_tokenizer_returns_and_padding_changes_no_answer(
    transformers, tmp_path
):
    model, tokenizer = loaded(transformers, exported(tmp_path, layers()))
    how = {"max_new_tokens": 4, "do_sample": False}
    alone = [
        model.generate(**tokenizer(text, return_tensors="pt"), **how)[0, -4:]
        for text in ("ab", "lock free")
    ]
    batch = tokenizer(["ab", "lock free"], return_tensors="pt", padding=True)
    assert not batch["attention_mask"].all()
    together = model.generate(**batch, **how)
    assert torch.equal(together[:, -4:], torch.stack(alone))
    logits = model(**batch).logits
    whole = model(batch["input_ids"][1:]).logits
    torch.testing.assert_close(logits[1:], whole)
    with pytest.raises(ValueError, match="has no token"):
        model(batch["input_ids"], attention_mask=0 * batch["attention_mask"])
    with pytest.raises(TypeError, match="no argument inputs_embeds"):
        model(batch["input_ids"], inputs_embeds=torch.zeros(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loads_computes_and_learns(transformers, tmp_path, dtype):
    model, _ = loaded(transformers, exported(tmp_path, layers()), dtype=dtype)
    assert model.dtype == dtype
    tokens = torch.arange(12)[None]
    answer = model(tokens, labels=tokens)
    in_parts = model(tokens, labels=tokens, num_items_in_batch=22).loss
    torch.testing.assert_close(2 * in_parts, answer.loss)  # 11 labels of 22
    answer.loss.backward()
    assert torch.isfinite(answer.logits).all()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


V1 = {
    "model_type": "xlstm_v1", "embedding_dim": 32, "num_blocks": 2, "slstm_at": [1],
    "mlstm_block": {"mlstm": {"num_heads": 2}}, "slstm_block": {"slstm": {"num_heads": 2}},
    "context_length": 64, "vocab_size": ByteTokenizer.vocab_size,
}  # fmt: skip
OURS = {
    "layers": layers(),
    "tables": replace(SMALL, ngram_orders=(2, 3), ngram_dim=4, ngram_rows=64),
    "tied": replace(SMALL, ngram_orders=(2,), ngram_rows=64, tie_word_embeddings=True),
    "resets": replace(SMALL, **RESETS),
    "no final norm": replace(SMALL, add_out_norm=False),
    "v1": families.read(V1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_a_model_that_transformers_lacks_is_exported_with_our_class_and_survives_it(
    transformers, tmp_path, name
):
    folder = exported(tmp_path, OURS[name])
    model, tokenizer = loaded(transformers, folder)
    tokens = np.arange(5, 25, dtype=np.int32)[None]
    tokens[0, [0, 7]] = ByteTokenizer().bos
    expected, _ = lm_float64.logits(OURS[name], formats.open(folder).tensors, tokens)
    logits = model(torch.from_numpy(tokens).long()).logits
    np.testing.assert_allclose(logits.detach(), expected, atol=2e-5)
    assert model.config.num_hidden_layers == OURS[name].num_hidden_layers
    assert model.get_input_embeddings()(torch.tensor([3])).shape == (1, OURS[name].hidden_size)
    assert model.get_output_embeddings().weight.shape[0] == ByteTokenizer.vocab_size
    model.save_pretrained(tmp_path / "again")
    again = formats.open(tmp_path / "again")
    assert again.config == formats.open(folder).config
    assert again.tensors.keys() == families.param_spec(OURS[name]).keys()
    text = model.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=3)
    assert text.shape[1] >= 4


@each_of("refused", ["made", "made/deeper", "made/deeper/model"])
def test_a_place_that_the_system_refuses_is_named_and_nothing_is_left(tmp_path, refused):
    mkdir = Path.mkdir

    def refusing(self, *args, **kwargs):  # root may write anywhere
        if str(self).startswith(str(tmp_path / refused)):
            raise PermissionError(13, "Permission denied", str(self))
        mkdir(self, *args, **kwargs)

    source = formats.open(saved_run(tmp_path / "runs").model.resolve())
    target = tmp_path / "made" / "deeper" / "model"
    message = f"cannot write {target}: Permission denied at {tmp_path / refused}.*another place"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", refusing)
        with pytest.raises(EnvironmentLacks, match=message):
            convert(source, target, "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
