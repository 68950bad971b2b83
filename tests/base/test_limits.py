"""Every file within its limits is read or refused in time that grows as its size does."""

import json

import numpy as np
import pytest
import torch

from mlxhog.base import plain_json, plain_yaml, reading, tensors
from mlxhog.base.quantities import Interval, parse_duration_s
from mlxhog.checkpoint.formats import weights
from mlxhog.config.components import OPTIMIZERS
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models.mad import sequence
from tests.pairs import each_of

# Quadratic time would outlast the limit of a test: these texts have the length of the largest YAML.
LONG = reading.MAX_YAML_BYTES


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


def test_a_text_beyond_its_limit_is_not_read(monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 100)
    monkeypatch.setattr(plain_yaml, "MAX_YAML_BYTES", 100)
    (tmp_path / "x.json").write_text("[" * 101)
    for read, what in (
        (plain_json.read, tmp_path / "x.json"),
        (plain_json.loads, "[" * 101),
        (plain_yaml.loads, "[" * 101),
    ):
        with pytest.raises(ValueError, match="more than 100 bytes"):
            read(what)


ARRAYS = {f"blocks.{k}.w": np.ones(2, np.float32) for k in range(4)}


@each_of(
    ("name", "message"),
    [
        ("model.safetensors", r"its header has \d+ bytes"),
        ("model.pt", r"its pickle has \d+ bytes"),
        (weights.INDEX, r"index.json has \d+ B; a file of this name has at most 3 B"),
    ],
)
def test_a_list_of_tensors_beyond_its_limit_is_refused_in_one_sentence(tmp_path, name, message):
    file = tmp_path / name
    if name == "model.safetensors":
        tensors.write(file, ARRAYS)
    elif name == "model.pt":
        torch.save({k: torch.from_numpy(v) for k, v in ARRAYS.items()}, file)
    else:
        for one, array in ARRAYS.items():
            tensors.write(tmp_path / f"{one}.safetensors", {one: array})
        file.write_text(json.dumps({"weight_map": {one: f"{one}.safetensors" for one in ARRAYS}}))
    assert weights.read(file).keys() == ARRAYS.keys()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MAX_HEADER_BYTES", 3)
        with pytest.raises(CheckpointError, match=message):
            weights.read(file)
