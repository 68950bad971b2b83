"""Readers of models and checkpoints, each with a small valid one; see `loaders`."""

import json

import numpy as np
import torch
import yaml

from mlxhog.base import tensors
from mlxhog.checkpoint import checkpoint, creation, formats
from mlxhog.checkpoint.formats import contents
from mlxhog.data import bpe
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.models import families
from tests.faults.subjects import LARGE, TEXTS_BYTES, V1, Subject


def _params(fields):
    model = families.read(fields)
    return model, families.init_params(model, 0)


def _touch(path):
    opened = formats.open(path)
    out = {name: np.empty(a.shape, np.float32) for name, a in opened.tensors.items()}
    opened.copy_into(out)
    opened.tokenizer()


def _write_hf(folder):
    model, params = _params(LARGE)
    tensors.write(folder / "model.safetensors", params)
    config = contents.our_config_json(model, dtype=np.dtype(np.float32)) | {"bos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = bpe.train_bpe(TEXTS_BYTES, 270)
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    return [folder / name for name in ("model.safetensors", "config.json", "tokenizer.json")]


def _write_shards(folder):
    model, params = _params(LARGE)
    names = sorted(params)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in files.items():
        tensors.write(folder / file, {name: params[name] for name in own})
    weight_map = {name: file for file, own in files.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(
        json.dumps(contents.our_config_json(model, dtype=np.dtype(np.float32)))
    )
    return [index, *(folder / file for file in files)]


def _write_torch(folder):
    _, params = _params(V1)
    file = folder / "model.pt"
    torch.save({"state_dict": {name: torch.from_numpy(a) for name, a in params.items()}}, file)
    (folder / "config.yaml").write_text(yaml.safe_dump(V1))
    return [file, folder / "config.yaml"]


def _write_checkpoint(folder):
    model, params = _params(LARGE)
    path = checkpoint.save(
        creation.create(folder, "fuzz"),
        step=3,
        params=params,
        model_config=model.to_dict(),
        optimizer={"m.1/x": np.arange(4, dtype=np.float32)},
        state={"version": 3, "ledger": {"epoch": 0, "done": []}, "used": {"steps": 3}},
        tokenizer=ByteTokenizer(),
    )
    return sorted(path.iterdir())


def _read_checkpoint(folder):
    (path,) = folder.glob("*-fuzz/checkpoints/step-*")
    checkpoint.load(path)


SUBJECTS = (
    Subject("directory of transformers", _write_hf, _touch, 4),
    Subject("shards", _write_shards, _touch, 3),
    Subject("torch file", _write_torch, lambda folder: _touch(folder / "model.pt"), 4),
    Subject("checkpoint", _write_checkpoint, _read_checkpoint, 2),
)
