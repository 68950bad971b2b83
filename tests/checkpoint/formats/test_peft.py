"""Adapters of PEFT and mlx-lm are read, and they load those that we write, with the same logits."""

import json
import shutil
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx_lm.tuner.utils import load_adapters
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

from mlxhog import backends
from mlxhog.checkpoint import formats, manifest
from mlxhog.checkpoint.formats import mlx_lm_adapter, peft
from mlxhog.checkpoint.formats.converting import FILES, convert
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families, lm_float64
from mlxhog.models.adapters import LoRA, merged
from tests.checkpoint.formats import peers
from tests.models.sample import SMALLEST, v1_config
from tests.saved import SMALL, saved_run, write_adapter
from tests.tolerances import LOGITS_BFLOAT16, LOGITS_F32, OP_F32, assert_close

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
        LoRA(rank=3, targets=("q", "ffn.*"), modules_to_save=("*.0.mlstm_layer.q",)),
        LoRA(rank=3, targets=("backbone.blocks.1.mlstm_layer.q",), modules_to_save=SAVED),
    ],
    ids=["default", "patterns", "a saved target", "saved"],
)
def test_an_adapter_of_ours_has_the_same_logits_in_peft(tmp_path, lora):
    folder = base_folder(tmp_path)
    model = replace(formats.open(folder).config, adapter=lora)
    own = drawn(model)
    (tmp_path / "own").mkdir()
    write_adapter(tmp_path / "own", model, own, base=folder)
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


def test_an_adapter_of_another_program_has_the_base_that_it_names_wherever_it_lies(tmp_path, good):
    folder = tmp_path / "checkpoints" / "last"
    shutil.copytree(good, folder)
    base = formats.open(good).base.path
    shutil.copytree(base, tmp_path / "base")  # of something else
    assert formats.open(folder).base.path == base


def test_a_second_writing_gives_the_same_files(tmp_path):
    by_peft(base_folder(tmp_path)).save_pretrained(tmp_path / "theirs")
    opened = formats.open(tmp_path / "theirs")
    trained = {name: opened.tensors[name] for name in families.trainable_spec(opened.config)}
    (tmp_path / "own").mkdir()
    write_adapter(tmp_path / "own", opened.config, trained, base=opened.base.path)
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
    write_adapter(tmp_path / "own", model, own, base=folder)
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
    "negative": (changed_config(lora_alpha=-4), "alpha is -4.0; wanted a number", "correct"),
    "json": (lambda folder: (folder / peft.CONFIG).write_text("{"), "cannot read", "correct"),
    "pair": (renamed("lora_B", "lora_C"), "without its pair", "save the adapter again"),
    "names": (renamed("base_model.", "model."), "PEFT's names begin with", "save"),
    "layers": (renamed("q.lora", "qq.lora"), "which no layer of this model is called", "there are"),
    "vocabulary": (narrow_vocabulary, "lm_head.weight has shape (40, 128), expected (50", "use"),
    "nowhere": (
        changed_config(base_model_name_or_path="/no/where"),
        "its base model /no/where is not there", "as base_model_name_or_path",
    ),
    "long name": (
        changed_config(base_model_name_or_path="n" * 5000), "n is not there",
        "as base_model_name_or_path",
    ),
    "unnamed": (
        changed_config(base_model_name_or_path=None),
        "its base model is not named", "as base_model_name_or_path",
    ),
    "base": (
        lambda folder: manifest.write(folder, 0, {"base": "x"}),
        "the base in state.json is 'x'", "there is no other",
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


@pytest.mark.parametrize("to", ["hf", "xlstm", "mlxhog"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_merged_adapter_is_a_whole_checkpoint_with_the_same_logits(tmp_path, good, to, dtype):
    source = formats.open(good)
    convert(source, tmp_path / "whole", to, dtype, merge=True)
    opened = formats.open(tmp_path / "whole")
    assert (opened.format, opened.config.adapter) == (to, None)
    tolerance = LOGITS_BFLOAT16 if dtype else LOGITS_F32
    assert_close(logits(opened), logits(source), tolerance)


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize(
    ("factor", "says"),
    [(1e4, "too large for float16; use --dtype float32;"), (np.nan, "that are not finite; use")],
)
def test_a_merged_weight_is_damaged_or_too_large_for_its_type(tmp_path, dtype, factor, says):
    peers.transformers_model().half().save_pretrained(tmp_path / "base")
    model = replace(formats.open(tmp_path / "base").config, adapter=LoRA(rank=2))
    own = {name: np.float32(factor) * value for name, value in drawn(model).items()}
    (tmp_path / "own").mkdir()
    write_adapter(tmp_path / "own", model, own, base=tmp_path / "base")
    with pytest.raises(CheckpointError, match=f"has numbers {says}"):
        convert(formats.open(tmp_path / "own"), tmp_path / "whole", "hf", dtype, merge=True)


def test_modules_to_save_replace_those_of_the_base_in_a_merged_checkpoint(tmp_path):
    folder = base_folder(tmp_path)
    by_peft(folder, modules_to_save=list(SAVED)).save_pretrained(tmp_path / "theirs")
    source = formats.open(tmp_path / "theirs")
    convert(source, tmp_path / "whole", "hf", merge=True)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for name in SAVED:
        saved = load_file(tmp_path / "theirs" / peft.MODEL)[f"{peft.PREFIX}{name}.weight"]
        np.testing.assert_array_equal(whole[f"{name}.weight"], saved)
    assert_close(logits(formats.open(tmp_path / "whole")), logits(source), LOGITS_F32)


@pytest.mark.parametrize("to", ["peft", "mlx-lm-adapter"])
def test_an_adapter_alone_is_converted_without_its_base(tmp_path, good, to):
    source = formats.open(good)
    convert(source, tmp_path / "alone", to)
    opened = formats.open(tmp_path / "alone")
    assert (opened.format, opened.base.path) == (to, source.base.path)
    assert formats.open(tmp_path / "alone" / FILES[to]).path == opened.path
    assert opened.config.adapter == source.config.adapter
    for name, array in source.tensors.items():
        np.testing.assert_array_equal(opened.tensors[name], array, name)


@pytest.mark.parametrize(
    ("adapter", "to", "merge", "says"),
    [
        (True, "hf", False, "--format hf is a whole checkpoint; add --merge"),
        (True, "peft", True, "--format peft keeps the adapter apart; leave --merge out"),
        (False, "hf", True, "is a whole checkpoint, and --merge is for an adapter"),
        (False, "mlx-lm-adapter", False, "and --format mlx-lm-adapter is for an adapter"),
    ],
)
def test_merging_is_said_and_only_of_an_adapter(tmp_path, good, adapter, to, merge, says):
    source = formats.open(good)
    with pytest.raises(ConfigError, match=says):
        convert(source if adapter else source.base, tmp_path / "out", to, merge=merge)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_mlx_lm_has_no_modules_that_are_trained_whole(tmp_path):
    folder = base_folder(tmp_path)
    by_peft(folder, modules_to_save=["lm_head"]).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="lm_head.weight, trained whole; write a whole"):
        convert(formats.open(tmp_path / "theirs"), tmp_path / "out", "mlx-lm-adapter")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (SMALLEST, "for MAD candidate; use --format peft"),
        (replace(SMALL, ngram_orders=(2,), ngram_rows=64), "with tables of n-grams; use --format"),
    ],
    ids=["layers", "ngrams"],
)
def test_an_adapter_of_a_model_that_mlx_lm_lacks_is_refused_for_it(tmp_path, model, says):
    base = saved_run(tmp_path / "runs", model=model).model.resolve()
    adapted = replace(model, adapter=LoRA(rank=2))
    (tmp_path / "own").mkdir()
    write_adapter(tmp_path / "own", adapted, drawn(adapted), base=base)
    with pytest.raises(ConfigError, match=f"our code for mlx-lm has no model.*{says}"):
        convert(formats.open(tmp_path / "own"), tmp_path / "out", "mlx-lm-adapter")
    convert(formats.open(tmp_path / "own"), tmp_path / "out", "peft")


class Linears(nn.Module):
    """A module of mlx with linear layers at these places, and nothing else."""

    def __init__(self, weights):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.blocks = [nn.Module(), nn.Module()]
        for stem, w in weights.items():
            *_, number, sublayer, name = stem.split(".")
            block = self.backbone.blocks[int(number)]
            if sublayer not in block:
                block[sublayer] = nn.Module()
            block[sublayer][name] = nn.Linear(w.shape[1], w.shape[0], bias=False)
            block[sublayer][name].weight = mx.array(w)

    @property
    def layers(self):
        return self.backbone.blocks


def test_mlx_lm_loads_an_adapter_and_adds_the_same_products(tmp_path, good):
    source = formats.open(good)
    convert(source, tmp_path / "alone", "mlx-lm-adapter")
    weights = {stem: source.base.tensors[f"{stem}.weight"] for stem in peft.stems(source.tensors)}
    model = load_adapters(Linears(weights), str(tmp_path / "alone"))
    model.eval()
    layers = dict(model.named_modules())
    for stem, w in weights.items():
        x = np.random.default_rng(0).standard_normal((3, w.shape[1]), np.float32)
        whole = merged(source.config.adapter, f"{stem}.weight", w, source.tensors)
        assert_close(np.array(layers[stem](mx.array(x))), x @ whole.T, OP_F32, label=stem)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora'.*mlx_lm fuse"),
        ({"lora_parameters": None}, "lora_parameters is None; copy the adapter again"),
        ({"lora_parameters": {"rank": 4}}, "scale is None, wanted a number"),
        ({"model": "/no/where"}, "/no/where is not there; write its path, .* as model in"),
    ],
)
def test_an_adapter_of_mlx_lm_that_cannot_be_read_is_refused(tmp_path, good, fields, says):
    convert(formats.open(good), tmp_path / "alone", "mlx-lm-adapter")
    changed_config(**fields)(tmp_path / "alone")
    with pytest.raises((CheckpointError, ConfigError), match=says):
        formats.open(tmp_path / "alone")


def test_an_adapter_is_of_the_program_that_its_config_is_of(tmp_path, good):
    convert(formats.open(good), tmp_path / "alone", "mlx-lm-adapter")
    shutil.copyfile(good / peft.MODEL, tmp_path / "alone" / peft.MODEL)
    assert formats.open(tmp_path / "alone").format == "mlx-lm-adapter"
    (tmp_path / "alone" / mlx_lm_adapter.MODEL).unlink()
    with pytest.raises(CheckpointError, match="adapters.safetensors is missing"):
        formats.open(tmp_path / "alone")


@pytest.mark.parametrize("model", [v1_config(), SMALLEST], ids=["v1", "mad"])
def test_an_adapter_of_another_family_has_our_names_and_the_logits_of_float64(tmp_path, model):
    base = saved_run(tmp_path / "runs", model=model).model.resolve()
    adapted = replace(model, adapter=LoRA(rank=2, targets=("*",)))
    own = drawn(adapted)
    (tmp_path / "own").mkdir()
    write_adapter(tmp_path / "own", adapted, own, base=base)
    opened = formats.open(tmp_path / "own")
    assert families.trainable_spec(opened.config).keys() == own.keys()
    tokens = np.arange(18).reshape(2, 9)
    expected, _ = lm_float64.logits(model, opened.merged().tensors, tokens)
    backend = backends.create("torch:cpu", threads=1, kernels="auto")
    backend.load(opened.config, opened.tensors)
    found, _ = backend.all_logits(tokens.astype(np.int32), None)
    assert_close(found, expected, LOGITS_F32)
