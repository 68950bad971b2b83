"""Readers of models, checkpoints and runs, each with a small valid one; see `loaders`."""

import contextlib
import io
import json
import shutil

import numpy as np
import torch
import yaml

from mlxhog import cli
from mlxhog.base import tensors
from mlxhog.checkpoint import checkpoint, creation, formats, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.formats import contents
from mlxhog.config.config import TrainConfig
from mlxhog.data import bpe
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import MlxhogError
from mlxhog.models import families
from mlxhog.theory.analysis import staleness
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


def _write_run(folder):
    run = creation.create(folder, "fuzz")
    model, params = _params(LARGE)
    checkpoint.save(
        run,
        step=3,
        params=params,
        model_config=model.to_dict(),
        optimizer={"m.1/x": np.arange(4, dtype=np.float32)},
        state={"version": 3, "ledger": {"epoch": 0, "done": []}, "used": {"steps": 3}},
        tokenizer=ByteTokenizer(),
    )
    run.config_path.write_text(TrainConfig(steps=3).to_yaml())
    run.write_status(
        {"status": "running", "pids": [1], "steps": 3, "gpu_write": "cpu", "kernels": "native"}
        | {"result": {"val_bits_per_byte": 2.5}, "emulated": False}
    )
    worker = {"slot": 1, "backend": "torch:cpu", "steps": 3, "dropped": 0, "mean_staleness": 0.5}
    for step in (1, 3):
        run.append_metrics(
            {"step": step, "elapsed_s": 1.0, "supervisor_pid": 7, "tokens_per_s": 10.0}
            | {"workers": [worker | {"max_staleness": 2, "staleness": {"0": 2, "1": 1}}]}
            | {"staleness": {"0": 2, "1": 1}, "lost_update_rate": None}
        )
    run.append_sample("a sample")
    other = folder / "20200101-000000-other"
    shutil.copytree(run.directory, other)
    return [
        other / name
        for name in ("run.json", "metrics.jsonl", "checkpoints/latest", "samples.txt", "lock")
        if (other / name).exists()
    ]


def _read_runs(folder):
    for words in (["runs"], ["runs", "--json"]):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cli.main([*words, "--out", str(folder)])
        assert code == 0, "one bad run must not break the list"
        assert out.getvalue().count("\n") >= 2
    run = runs.find("20200101-000000-other", folder)
    run.last_sample()
    run.read_status()
    for read in (lambda: staleness.of_run(run, "lossless"), lambda: checkpoint.latest(run)):
        with contextlib.suppress(MlxhogError):
            read()


def _write_checkpoint(folder):
    _write_run(folder)
    (path,) = folder.glob("*-fuzz/checkpoints/step-*")
    path.rename(folder / "step-00000003")
    for name in folder.glob("*-*"):
        if name.name != "step-00000003":
            shutil.rmtree(name)
    return sorted((folder / "step-00000003").iterdir())


def _read_checkpoint(folder):
    checkpoint.load(folder / "step-00000003")


def _read_signed(folder):
    """As if whoever changed a file had also written a manifest that fits."""
    path = folder / "step-00000003"
    state = path / manifest.NAME
    kept = state.read_bytes()
    try:
        try:
            record = json.loads(kept)
            files = {p: p.read_bytes() for p in path.iterdir() if p != state}
            for file, content in files.items():
                entry = record["files"][file.name]
                entry["bytes"], entry["sha256"] = len(content), manifest._digest(file)
            record["sha256"] = manifest._own_digest(record)
            state.write_text(json.dumps(record))
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
            pass  # the manifest itself was changed
        checkpoint.load(path)
        checkpoint.check_architecture(checkpoint.load(path), families.read(LARGE).to_dict())
    finally:
        state.write_bytes(kept)


SUBJECTS = (
    Subject("directory of transformers", _write_hf, _touch, 4),
    Subject("shards", _write_shards, _touch, 3),
    Subject("torch file", _write_torch, lambda folder: _touch(folder / "model.pt"), 4),
    Subject("checkpoint", _write_checkpoint, _read_checkpoint, 2),
    Subject("checkpoint with a manifest that fits", _write_checkpoint, _read_signed, 4),
    Subject("runs", _write_run, _read_runs, 4),
)
