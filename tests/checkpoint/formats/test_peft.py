"""Adapters that PEFT wrote are read, and those that we write load in PEFT, with the same logits."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

from mlxhog import backends
from mlxhog.checkpoint import formats
from mlxhog.checkpoint.formats import peft
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families
from mlxhog.models.adapters import LoRA, is_adapter
from tests.checkpoint.formats import peers
from tests.tolerances import LOGITS_F32, assert_close

# PEFT 0.21 asks transformers 5.24 by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TARGETS = ["q", "k", "v", "ogate_preact", "out_proj", "proj_up", "proj_up_gate", "proj_down"]


def base_folder(tmp_path, **changed):
    """A directory that transformers wrote."""
    peers.transformers_model(**changed).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def by_peft(folder, **changed):
    """A model of transformers with an adapter of PEFT whose B is not zero."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    base = peers.xLSTMForCausalLM.from_pretrained(folder)
    model = get_peft_model(base, LoraConfig(**options | changed)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 0.1 if "lora_B" in name else 0.02
                parameter.add_(scale * torch.randn(parameter.shape))
    return model


def drawn(model, seed=3):
    """Values for the trained parameters of a model with an adapter; B is not zero."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(spec.shape) / 8).astype(np.float32)
        for name, spec in families.trainable_spec(model).items()
    }


def logits(opened):
    """What we compute with an open checkpoint."""
    backend = backends.create("torch:cpu", threads=1, kernels="auto")
    assert backend.load(opened.config, opened.tensors) == []
    return backend.all_logits(peers.TOKENS.numpy().astype(np.int32), None)[0]


def their_logits(model):
    with torch.no_grad():
        return model(peers.TOKENS, use_cache=False).logits.numpy()


SAVED = ("lm_head", "backbone.embeddings", "backbone.out_norm")


@pytest.mark.parametrize(
    "lora",
    [
        LoRA(rank=4, alpha=3.0),
        LoRA(rank=2, dropout=0.1, targets=("*.ffn.*", "mlstm_layer.igate_preact")),
        LoRA(rank=3, targets=("backbone.blocks.1.mlstm_layer.q",), modules_to_save=SAVED),
    ],
    ids=["default", "patterns", "saved"],
)
def test_an_adapter_of_ours_has_the_same_logits_in_peft(tmp_path, lora):
    folder = base_folder(tmp_path)
    model = replace(formats.open(folder).config, adapter=lora)
    own = drawn(model)
    (tmp_path / "own").mkdir()
    peft.write(tmp_path / "own", model, own, base=folder)
    opened = formats.open(tmp_path / "own")
    assert families.trainable_spec(opened.config).keys() == own.keys()
    for name, array in own.items():
        np.testing.assert_array_equal(opened.tensors[name], array, name)
    base = peers.xLSTMForCausalLM.from_pretrained(folder)
    theirs = PeftModel.from_pretrained(base, tmp_path / "own").eval()
    assert_close(logits(opened), their_logits(theirs), LOGITS_F32)
    assert np.abs(logits(opened) - logits(formats.open(folder))).max() > 0.01


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_dropout": 0.2},
        {"target_modules": r".*\.1\.mlstm_layer\.(q|k)", "modules_to_save": list(SAVED)},
        {"target_modules": ["q", "k"], "layers_to_transform": [1], "layers_pattern": "blocks"},
    ],
    ids=["plain", "rslora", "saved", "layers"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_an_adapter_of_peft_has_the_same_logits_here(tmp_path, options, bias):
    folder = base_folder(tmp_path, use_bias=bias)
    theirs = by_peft(folder, **options)
    theirs.save_pretrained(tmp_path / "theirs")
    opened = formats.open(tmp_path / "theirs")
    assert opened.format == "peft"
    assert opened.base.path == folder
    assert_close(logits(opened), their_logits(theirs), LOGITS_F32)
    assert np.abs(logits(opened) - logits(formats.open(folder))).max() > 0.01


def test_a_second_writing_gives_the_same_files(tmp_path):
    by_peft(base_folder(tmp_path)).save_pretrained(tmp_path / "theirs")
    opened = formats.open(tmp_path / "theirs")
    trained = {name: opened.tensors[name] for name in families.trainable_spec(opened.config)}
    (tmp_path / "own").mkdir()
    peft.write(tmp_path / "own", opened.config, trained, base=opened.base.path)
    theirs, own = (load_file(tmp_path / name / peft.MODEL) for name in ("theirs", "own"))
    assert own.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(own[name], array, name)


def test_a_tied_model_trains_one_matrix_that_peft_has_twice(tmp_path):
    folder = base_folder(tmp_path)
    fields = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(fields))
    arrays = load_file(folder / "model.safetensors")
    arrays["lm_head.weight"] = arrays["backbone.embeddings.weight"].copy()
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    model = formats.open(folder).config
    model = replace(model, adapter=LoRA(rank=2, modules_to_save=("backbone.embeddings",)))
    (tmp_path / "own").mkdir()
    own = drawn(model)
    peft.write(tmp_path / "own", model, own, base=folder)
    written = load_file(tmp_path / "own" / peft.MODEL)
    head = written[f"{peft.PREFIX}lm_head.weight"]
    np.testing.assert_array_equal(head, own["backbone.embeddings.weight"])
    assert families.trainable_spec(formats.open(tmp_path / "own").config).keys() == own.keys()


def changed_config(**fields):
    def change(folder):
        path = folder / peft.CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def renamed(old, new):
    def change(folder):
        arrays = load_file(folder / peft.MODEL)
        names = {name: name.replace(old, new) for name in arrays}
        save_file({names[name]: array for name, array in arrays.items()}, folder / peft.MODEL)

    return change


def narrow_vocabulary(folder):
    arrays = load_file(folder / peft.MODEL)
    arrays[f"{peft.PREFIX}lm_head.weight"] = np.zeros((40, 128), np.float32)
    save_file(arrays, folder / peft.MODEL)


def pickled(folder):
    (folder / peft.MODEL).rename(folder / peft.PICKLE)


MERGE = "merge_and_unload"
FAULTS = {
    "pickle": (pickled, "has only adapter_model.bin, a pickle", "safe_serialization=True"),
    "missing": (lambda folder: (folder / peft.MODEL).unlink(), "has no adapter_model", "copy"),
    "dora": (changed_config(use_dora=True), "use_dora is True", MERGE),
    "bias": (changed_config(bias="all"), "bias is 'all'", MERGE),
    "ranks": (changed_config(rank_pattern={"q": 2}), "rank_pattern is {'q': 2}", MERGE),
    "alphas": (changed_config(alpha_pattern={"q": 2}), "alpha_pattern", MERGE),
    "kind": (changed_config(peft_type="IA3"), "peft_type is 'IA3'", MERGE),
    "pissa": (changed_config(init_lora_weights="pissa_niter_4"), "init_lora_weights", MERGE),
    "unknown": (changed_config(new_option=1), "new_option is 1", MERGE),
    "rank": (changed_config(r=2.5), "the rank is 2.5", "a whole number"),
    "another rank": (changed_config(r=8), "shape (4, 128), expected (8, 128)", "use the config"),
    "above": (changed_config(r=4000), "rank 4000 is above the smaller side of", "at most 64"),
    "alpha": (changed_config(lora_alpha="much"), "the scale is 'much'", "correct the file"),
    "json": (lambda folder: (folder / peft.CONFIG).write_text("{"), "cannot read", "correct"),
    "pair": (renamed("lora_B", "lora_C"), "without its pair", "save the adapter again"),
    "names": (renamed("base_model.", "model."), "PEFT's names begin with", "save"),
    "layers": (renamed("q.lora", "qq.lora"), "which no layer of this model is called", "there are"),
    "vocabulary": (narrow_vocabulary, "lm_head.weight has shape (40, 128), expected (50", "use"),
    "nowhere": (
        changed_config(base_model_name_or_path="/no/where"),
        "its base model /no/where is not there", "as base_model_name_or_path",
    ),
    "unnamed": (
        changed_config(base_model_name_or_path=None),
        "its base model is not named", "as base_model_name_or_path",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """An adapter of PEFT; tests copy it."""
    folder = tmp_path_factory.mktemp("good")
    by_peft(base_folder(folder)).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_read_is_refused_with_the_way_out(tmp_path, good, fault):
    change, *says = FAULTS[fault]
    shutil.copytree(good, tmp_path / "bad")
    change(tmp_path / "bad")
    with pytest.raises((CheckpointError, ConfigError)) as error:
        formats.open(tmp_path / "bad")
    for part in (str(tmp_path / "bad"), *says):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    model = replace(formats.open(base_folder(tmp_path)).config, adapter=LoRA(rank=2))
    own = drawn(model)
    own[next(filter(is_adapter, own))][0, 0] = np.nan
    with pytest.raises(CheckpointError, match="lora_A.weight of the adapter has numbers that are"):
        peft.write(tmp_path, model, own, base="x")
    assert not (tmp_path / peft.CONFIG).exists()
