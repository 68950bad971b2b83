"""Every file within its limits is read or refused in time that grows as its size does."""

import json

import numpy as np
import pytest
import torch

from mlxhog.base import plain_json, plain_yaml, reading, tensors
from mlxhog.base.quantities import Interval, parse_duration_s
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.formats import weights
from mlxhog.config import sources
from mlxhog.config.choices import OPTIMIZERS
from mlxhog.config.config import TrainConfig
from mlxhog.config.sources import resolve
from mlxhog.data import tokenizers
from mlxhog.errors import CheckpointError, ConfigError, DataError
from mlxhog.models.mad import sequence
from tests.pairs import each_of

# Quadratic time would outlast the limit of a test: these texts have the length of the largest YAML.
LONG = reading.MOST_YAML_BYTES


@each_of(
    ("read", "text", "message"),
    [
        (OPTIMIZERS.parts, "adamw" + " " * LONG + "!", "wanted a name"),
        (parse_duration_s, "1" * LONG + "x", "wanted"),
        (Interval.parse, "1" * LONG + "x", "wanted"),
        (sequence.parse, "(" * (LONG // 9) + "swiglu) " * (LONG // 9), "layers; write 4096 at"),
    ],
)
def test_a_very_long_text_is_refused_soon(read, text, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        read(text)


def test_only_the_first_unknown_options_get_a_suggestion(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "suggestion", lambda name, known: asked.append(name) or "")
    unknown = {f"x{k}": (1, f"conf.yaml:{k}") for k in range(1000)}
    with pytest.raises(ConfigError, match="no option 'x0'"):
        resolve(TrainConfig, [unknown])
    assert len(asked) <= 20


def test_texts_longer_than_their_limits_are_refused_unread(monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "MOST_JSON_BYTES", 100)
    monkeypatch.setattr(plain_yaml, "MOST_YAML_BYTES", 100)
    (tmp_path / "x.json").write_text("[" * 101)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        plain_json.read(tmp_path / "x.json")
    for loads in (plain_json.loads, plain_yaml.loads):
        with pytest.raises(ValueError, match="more than 100 bytes"):
            loads("[" * 101)


# -- checkpoints ---------------------------------------------------------------------------------


ARRAYS = {f"blocks.{k}.w": np.ones(2, np.float32) for k in range(4)}


def safetensors_file(folder):
    tensors.write(folder / "model.safetensors", ARRAYS)
    return folder / "model.safetensors"


def torch_file(folder):
    torch.save({k: torch.from_numpy(v) for k, v in ARRAYS.items()}, folder / "model.pt")
    return folder / "model.pt"


def shards(folder):
    for name, array in ARRAYS.items():
        tensors.write(folder / f"{name}.safetensors", {name: array})
    index = {"weight_map": {name: f"{name}.safetensors" for name in ARRAYS}}
    (folder / weights.INDEX).write_text(json.dumps(index))
    return folder / weights.INDEX


def numbered(folder):
    for k, (name, array) in enumerate(ARRAYS.items()):
        tensors.write(folder / f"model_{k}.safetensors", {name: array})
    return folder / "model_0.safetensors"


@each_of(
    ("make", "limit", "message"),
    [
        (safetensors_file, "MOST_TENSORS", "4 tensors; the limit is 3"),
        (safetensors_file, "MOST_HEADER_BYTES", "bytes of header; the limit is 3"),
        (safetensors_file, "MOST_NAME", "10 characters in a name; the limit is 3"),
        (torch_file, "MOST_TENSORS", "the limit is "),
        (torch_file, "MOST_HEADER_BYTES", "bytes of pickle; the limit is 3"),
        (torch_file, "MOST_NAME", "10 characters in a name; the limit is 3"),
        (shards, "MOST_TENSORS", "4 tensors; the limit is 3"),
        (shards, "MOST_SHARDS", "4 shards; the limit is 3"),
        (numbered, "MOST_TENSORS", "4 tensors; the limit is 3"),
        (numbered, "MOST_SHARDS", "4 shards; the limit is 3"),
    ],
)
def test_a_checkpoint_beyond_a_limit_is_refused_in_one_sentence(tmp_path, make, limit, message):
    file = make(tmp_path)
    assert weights.read(file).keys() == ARRAYS.keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, limit, 3)
        words = f"{message}.*so the file is damaged or of another kind; fetch it again"
        with pytest.raises(CheckpointError, match=words):
            weights.read(file)


def test_a_manifest_of_too_many_files_and_a_tokenizer_of_too_many_pieces_are_refused(
    tmp_path, monkeypatch
):
    for name in "abcd":
        (tmp_path / name).touch()
    manifest.write(tmp_path, 1, {})
    monkeypatch.setattr(reading, "MOST_SHARDS", 3)
    with pytest.raises(CheckpointError, match="has 4 files; the limit is 3"):
        manifest.read(tmp_path)
    files = tokenizers.ByteTokenizer().files()
    description = json.loads(files["tokenizer.json"])
    description["model"]["vocab"]["aa"] = 257
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    (tmp_path / "tokenizer_config.json").write_bytes(files["tokenizer_config.json"])
    assert tokenizers.load(tmp_path).n_ids == 258
    monkeypatch.setattr(reading, "MOST_PIECES", 100)
    with pytest.raises(DataError, match="257 tokens; the limit is 100, so the file is damaged"):
        tokenizers.load(tmp_path)
