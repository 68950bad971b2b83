"""Checkpoints that others wrote are recognized, and what is wrong with one is named."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mlxhog.checkpoint import formats
from mlxhog.errors import CheckpointError, ConfigError
from tests.checkpoint.formats import peers
from tests.pairs import each_of


def same(opened, expected):
    """The tensors are exactly the given ones, whatever the type they are stored in."""
    assert opened.tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(opened.tensors[name].astype(np.float32), array, name)


@pytest.fixture
def hf(tmp_path):
    """A directory that transformers wrote: bfloat16, in shards."""
    model = peers.transformers_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "hf", max_shard_size="400KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    return tmp_path / "hf"


@each_of("dtype", [torch.float32, torch.float16, torch.bfloat16])
@each_of("size", ["1GB", "400KB"])
def test_a_directory_of_transformers_opens_whole_or_in_shards(tmp_path, dtype, size):
    model = peers.transformers_model(use_bias=True).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=size)
    opened = formats.open(tmp_path)
    assert (opened.format, opened.config.hidden_size) == ("hf", 128)
    assert {str(a.dtype) for a in opened.tensors.values()} == {str(dtype).removeprefix("torch.")}
    same(opened, peers.state(model))


def state_of_large(model):
    """Its state dict under our names."""
    expected = peers.state(model)
    expected["backbone.embeddings.weight"] = expected.pop("embedding.weight")
    return expected


@each_of("name", ["model.pt", "x.pth", "last.ckpt", "pytorch_model.bin"])
@each_of("prefix", ["", "module.", "_orig_mod.", "model._orig_mod."])
def test_what_training_programs_put_around_a_state_dict_is_taken_off(tmp_path, name, prefix):
    model = peers.large()
    inner = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({"state_dict": inner, "epoch": 3, "optimizer": {"lr": 1.0}}, tmp_path / name)
    peers.save_config(model, tmp_path)
    for path in (tmp_path, tmp_path / name):
        same(formats.open(path), state_of_large(model))


def test_torch_files_of_the_old_layout_are_refused_and_strided_tensors_open(tmp_path):
    model = peers.large()
    state = model.state_dict()
    state["lm_head.weight"] = state["lm_head.weight"].t().contiguous().t()
    peers.save_config(model, tmp_path)
    torch.save(state, tmp_path / "model.pt")
    same(formats.open(tmp_path), state_of_large(model))
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path, "of a torch before 1.6", "save the state dict again")


def test_a_config_that_lies_elsewhere_is_named(tmp_path, monkeypatch):
    model = peers.v1([1])
    peers.save_package(model, tmp_path / "a")
    config = tmp_path / "b.yaml"
    shutil.move(tmp_path / "a" / "config.yaml", config)
    convert = f"mlxhog convert {tmp_path / 'a'} NEW --format mlxhog --config FILE"
    refused(tmp_path / "a", "has no config beside it", "put it there", convert)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (config, "~/b.yaml"):
        same(formats.open(tmp_path / "a", name), peers.state(model))


def refused(path, *said, error=CheckpointError):
    with pytest.raises(error) as caught:
        formats.open(path)
    for part in said:
        assert part in str(caught.value), str(caught.value)


def test_tensors_that_are_missing_superfluous_misshapen_or_of_a_wrong_type_are_all_named(tmp_path):
    peers.transformers_model().save_pretrained(tmp_path)
    arrays = dict(load_file(tmp_path / "model.safetensors"))
    del arrays["backbone.blocks.1.ffn.proj_up.weight"]
    arrays["backbone.blocks.2.ffn.proj_up.weight"] = np.zeros(3, np.float32)
    arrays["lm_head.weight"] = arrays["lm_head.weight"][:, :100].copy()
    arrays["backbone.out_norm.weight"] = np.ones(128, np.int32)
    save_file(arrays, tmp_path / "model.safetensors")
    refused(
        tmp_path,
        "backbone.blocks.1.ffn.proj_up.weight is missing",
        "backbone.blocks.2.ffn.proj_up.weight is superfluous",
        "lm_head.weight has shape (50, 100), expected (50, 128)",
        "backbone.out_norm.weight has type int32, expected float32 or float16 or bfloat16",
        "; use the config of these tensors, or copy the checkpoint again",
    )


@each_of(
    ("changed", "message"),
    [
        ({"embedding_dim": 64}, "keep the one that the tensors fit"),
        ({"num_blocks": 3}, "keep the one that the tensors fit"),
        ({"tie_word_embeddings": True}, "ties the embedding and the head"),
        ({"add_out_norm": False}, "add_out_norm is false, but the file has"),
    ],
)
def test_config_fields_that_contradict_each_other_are_refused(hf, changed, message):
    whole = (hf / "config.json").read_text()
    (hf / "config.json").write_text(json.dumps(json.loads(whole) | changed))
    refused(hf, message, error=ConfigError)
    (hf / "config.json").write_text(whole)


def test_shards_whose_index_is_missing_are_all_read(hf):
    names = set(formats.open(hf).tensors)
    (hf / "model.safetensors.index.json").unlink()
    first, second = sorted(hf.glob("model-*.safetensors"))[:2]
    for path in (hf, first, second):
        assert set(formats.open(path).tensors) == names
    second.unlink()
    for path in (hf, first):
        refused(path, f"has no shard {second.name}")


def test_a_damaged_shard_or_index_is_named(hf):
    index = hf / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    weight_map = content["weight_map"]
    shard = hf / sorted(set(weight_map.values()))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(hf, "model-00002-of-")
    shard.unlink()
    refused(hf, "which is missing")
    weight_map[next(name for name, file in weight_map.items() if file == shard.name)] = "../x.pt"
    for text, message in (
        (json.dumps(content), "names no files beside it"), ("{", "is not an index of shards"),
    ):  # fmt: skip
        index.write_text(text)
        refused(hf, message)


def test_a_checkpoint_of_another_family_says_what_it_has(tmp_path):
    name = "layers.0.self_attn.q_proj.weight"
    save_file({name: np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    refused(tmp_path, "is not an xLSTM", name)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused(tmp_path, "its config says model_type 'llama'")


class Payload:
    """What a pickle may run when it is loaded."""

    def __reduce__(self):
        return (exec, ("raise AssertionError('ran')",))


LOOP = {}
LOOP["model"] = LOOP


@pytest.mark.filterwarnings("ignore:Sparse")
@each_of(
    ("content", "message"),
    [
        ({"weights": [1, 2]}, "has no state dict"),
        (LOOP, "has no state dict"),
        ({"a": torch.eye(3).to_sparse()}, "a has type"),
        ({"a": torch.empty(3, device="meta")}, "a has type"),
        ({"state_dict": {"a": torch.ones(3)}, "extra": Payload()}, "has more than tensors"),
        (pickle.dumps({"w": Payload()}), "foreign"),
        (b"", "missing, truncated, foreign, or of a torch before 1.6"),
        (b"PK\x03\x04 not a zip", "missing, truncated, foreign"),
    ],
)
def test_a_torch_file_without_a_state_dict_or_with_a_program_is_refused_unread(
    tmp_path, content, message
):
    file = tmp_path / "model.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    refused(file, message)


@each_of("name", ["model.safetensors", "model_0.safetensors", "model.pt"])
def test_a_pointer_of_git_lfs_is_called_so_with_what_fetches_the_file(tmp_path, name):
    (tmp_path / name).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n"
    )
    refused(tmp_path, f"{name} is a Git LFS pointer", f"`git lfs pull` in {tmp_path}")


def test_a_directory_with_several_checkpoints_or_none_is_refused(tmp_path):
    refused(tmp_path, "has no checkpoint")
    refused(tmp_path / "gone", "there is no such file or directory")
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    refused(tmp_path, "has several checkpoints: a.pt, b.pt")
    (tmp_path / "notes.txt").touch()
    refused(tmp_path / "notes.txt", "its name ends in none of")
