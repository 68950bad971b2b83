"""Checkpoints: whole or absent, loadable by transformers, and every kind of damage named."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mlxhog.checkpoint import checkpoint, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.checkpoint.run import Run
from mlxhog.data import bpe
from mlxhog.data.tokenizers import ByteTokenizer, Tokenizer
from mlxhog.errors import CheckpointError, ConfigError, EnvironmentLacks, RunError
from mlxhog.files import durable, mapped, tensors
from tests.small_disk import small_disk

pytestmark = pytest.mark.slow

Params = dict[str, NDArray[np.float32]]


def xlstm_config(hidden_size: int) -> dict[str, Any]:
    return {
        "vocab_size": 320,
        "hidden_size": hidden_size,
        "embedding_dim": hidden_size,
        "num_hidden_layers": 2,
        "num_blocks": 2,
        "num_heads": 2,
        "use_bias": False,
        "add_out_norm": True,
        "tie_word_embeddings": False,
        "norm_eps": 1e-6,
        "qk_dim_factor": 0.5,
        "v_dim_factor": 1.0,
        "chunk_size": 16,
        "eps": 1e-6,
        "ffn_proj_factor": 2.667,
        "ffn_round_up_to_multiple_of": 64,
        "gate_soft_cap": 15.0,
        "output_logit_soft_cap": 30.0,
        "weight_mode": "single",
        "autocast_kernel_dtype": "float32",
        "inference_state_dtype": "float32",
    }


def xlstm_params(config: dict[str, Any], seed: int = 0) -> Params:
    """Random parameters under the names and shapes of transformers' xLSTMForCausalLM."""
    d, heads = config["hidden_size"], config["num_heads"]
    qk, v, ffn = d // 2, d, int((d * 2.667 + 63) // 64 * 64)
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.weight": (320, d),
        "backbone.out_norm.weight": (d,),
        "lm_head.weight": (320, d),
    }
    for layer in range(config["num_hidden_layers"]):
        block = f"backbone.blocks.{layer}."
        shapes |= {
            block + "norm_mlstm.weight": (d,),
            block + "mlstm_layer.q.weight": (qk, d),
            block + "mlstm_layer.k.weight": (qk, d),
            block + "mlstm_layer.v.weight": (v, d),
            block + "mlstm_layer.ogate_preact.weight": (v, d),
            block + "mlstm_layer.igate_preact.weight": (heads, d),
            block + "mlstm_layer.igate_preact.bias": (heads,),
            block + "mlstm_layer.fgate_preact.weight": (heads, d),
            block + "mlstm_layer.fgate_preact.bias": (heads,),
            block + "mlstm_layer.multihead_norm.weight": (v,),
            block + "mlstm_layer.out_proj.weight": (d, v),
            block + "norm_ffn.weight": (d,),
            block + "ffn.proj_up_gate.weight": (ffn, d),
            block + "ffn.proj_up.weight": (ffn, d),
            block + "ffn.proj_down.weight": (d, ffn),
        }
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(shape) * 0.2).astype(np.float32)
        for name, shape in shapes.items()
    }


CONFIG = xlstm_config(64)
PARAMS = xlstm_params(CONFIG)
STATE = {"tokens": 123, "data": {"epoch": 0, "watermark": 4, "done": [6, 7], "torn": 0}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.create(tmp_path / "runs", "test")


def save(run: Run, step: int = 1000, **changed: Any) -> Path:
    arguments: dict[str, Any] = {
        "params": PARAMS,
        "model_config": CONFIG,
        "optimizer": {
            "m.1": np.arange(1000, dtype=np.float32),
            "steps": np.array([3, 4], np.uint64),
            "scalar": np.array(2.5, np.float32),
        },
        "state": STATE,
        "tokenizer": ByteTokenizer(),
    }
    return checkpoint.save(run, step=step, **(arguments | changed))


def names(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_a_checkpoint_gives_back_what_was_saved(run: Run) -> None:
    path = save(run)
    loaded = checkpoint.load(path)
    assert path == run.checkpoints / "step-00001000"
    assert (loaded.step, loaded.state) == (1000, STATE)
    assert loaded.params.keys() == PARAMS.keys()
    for name, array in PARAMS.items():
        assert np.array_equal(loaded.params[name], array)
    assert np.array_equal(loaded.optimizer["m.1"], np.arange(1000, dtype=np.float32))
    assert loaded.optimizer["steps"].tolist() == [3, 4]
    assert loaded.optimizer["scalar"].shape == ()
    assert loaded.optimizer["scalar"] == 2.5
    assert loaded.tokenizer.sha256 == ByteTokenizer().sha256
    assert loaded.config["hidden_size"] == 64


def test_parameters_are_mapped_and_not_copied(run: Run) -> None:
    loaded = checkpoint.load(save(run))
    for array in loaded.params.values():
        assert not array.flags.writeable
        assert array.flags.c_contiguous
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base.obj, mmap.mmap)


def test_views_of_a_larger_array_are_saved_as_they_look(run: Run) -> None:
    flat = np.arange(24, dtype=np.float32)
    params = {"a": flat[:12].reshape(3, 4), "b": flat[12:].reshape(4, 3).T}
    path = save(run, params=params, optimizer={})
    loaded = tensors.read(path / "model.safetensors")
    assert np.array_equal(loaded["a"], params["a"])
    assert np.array_equal(loaded["b"], params["b"])
    assert tensors.read(path / "optimizer.safetensors") == {}


@pytest.mark.parametrize("hidden_size", [64, 128])
def test_transformers_loads_a_checkpoint_and_computes_the_same_logits(
    run: Run, hidden_size: int
) -> None:
    config = xlstm_config(hidden_size)
    params = xlstm_params(config)
    path = save(run, model_config=config, params=params)
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    model, info = loaded
    assert type(model).__name__ == "xLSTMForCausalLM"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32

    transformers_model: Any = AutoModelForCausalLM
    direct = transformers_model.from_config(AutoConfig.for_model("xlstm", **config))
    direct.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})
    tokens = torch.arange(40)[None] * 7 % 257
    with torch.no_grad():
        logits = model.eval()(tokens).logits
        expected = direct.eval()(tokens, use_cache=False).logits
    assert logits.shape == (1, 40, 320)
    assert torch.equal(logits, expected)


def test_transformers_generates_text_from_the_link_to_the_newest_checkpoint(run: Run) -> None:
    save(run)
    model: Any = AutoModelForCausalLM.from_pretrained(run.model)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    prompt = tokenizer("The ", return_tensors="pt")
    assert prompt["input_ids"].tolist() == [[256, *b"The "]]
    tokens = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert tokens.shape[0] == 1
    assert tokens.shape[1] > 5


def test_a_bpe_tokenizer_travels_with_the_checkpoint(run: Run) -> None:
    tokenizer: Tokenizer = bpe.train([b"the state of the union " * 9], 270)
    loaded = checkpoint.load(save(run, tokenizer=tokenizer))
    checkpoint.check_tokenizer(loaded, tokenizer)
    with pytest.raises(CheckpointError, match=rf"{tokenizer.sha256}.*{ByteTokenizer().sha256}"):
        checkpoint.check_tokenizer(loaded, ByteTokenizer())


def test_latest_moves_and_only_the_last_few_remain(run: Run) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        checkpoint.latest(run)
    for step in (10, 20, 30, 40):
        path = save(run, step, keep_last=2)
        assert checkpoint.latest(run) == path
    assert names(run) == ["latest", "step-00000030", "step-00000040"]


def test_a_resumed_run_keeps_its_newest_checkpoint_though_its_step_is_lower(run: Run) -> None:
    save(run, 100)
    save(run, 200)
    path = save(run, 150, keep_last=1)
    assert checkpoint.latest(run) == path
    assert names(run) == ["latest", "step-00000150"]


def test_saving_a_step_again_replaces_it(run: Run) -> None:
    save(run, 10)
    path = save(run, 10, state={"second": True})
    assert checkpoint.load(path).state == {"second": True}
    assert names(run) == ["latest", "step-00000010"]


def test_keeping_no_checkpoint_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="keep_last is 0"):
        save(run, keep_last=0)


@pytest.mark.parametrize("spec", ["checkpoint", "run path", "run name", "a part", "latest"])
def test_a_checkpoint_is_located_by_its_path_or_by_its_run(run: Run, spec: str) -> None:
    save(run, 1)
    path = save(run, 2)
    given = {
        "checkpoint": str(path),
        "run path": str(run.directory),
        "run name": run.name,
        "a part": run.name[-3:],
        "latest": "latest",
    }[spec]
    assert checkpoint.locate(given, run.directory.parent) == path


def test_one_of_a_runs_checkpoints_is_located_by_its_name(run: Run) -> None:
    first, root = save(run, 1), run.directory.parent
    save(run, 2)
    assert checkpoint.locate("latest", root, "step-00000001") == first
    for which in ("step-00000003", "..", "../checkpoints/step-00000001", ""):
        with pytest.raises(CheckpointError, match="it has step-00000001, step-00000002"):
            checkpoint.locate("latest", root, which)


def test_the_link_to_the_model_moves_with_every_checkpoint(run: Run) -> None:
    run.model.mkdir()  # as runs of old have it
    (run.model / "config.json").write_text("{}")
    for step in (1, 2, 3):
        path = save(run, step, keep_last=1)
        assert run.model.is_symlink()
        assert run.model.resolve() == path.resolve()
        assert checkpoint.load(run.model).step == step
        assert checkpoint.locate(str(run.model), run.directory.parent) == run.model
    moved = run.directory.rename(run.directory.with_name("moved"))
    assert (moved / "model" / "config.json").is_file()  # the link is relative


def test_a_link_that_cannot_move_leaves_the_one_before(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(run, 1)
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if target == run.model:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(EnvironmentLacks, match="linking .*model failed: the disk reports an error"):
        save(run, 2)
    assert run.model.resolve() == first.resolve()
    assert not list(run.directory.glob("*.part"))


def test_a_file_system_without_links_has_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert checkpoint.load(save(run, 1)).step == 1
    assert not run.model.exists()


def test_a_path_that_the_system_refuses_to_look_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot look at n+: File name too long; name an"):
        checkpoint.locate("n" * 300, tmp_path)


def test_what_is_neither_run_nor_checkpoint_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run") as caught:
        checkpoint.locate(str(tmp_path), tmp_path / "runs")
    for needed in ("model.safetensors", "config.json", "run.json"):
        assert needed in str(caught.value)
    with pytest.raises(RunError, match="did you mean"):
        checkpoint.locate(f"{run.name}x", run.directory.parent)


# What dies or fills up while saving.


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may handle it."""


@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("same_step", [False, True])
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch, moment: int, same_step: bool
) -> None:
    save(run, 10, state={"n": 1})
    calls = iter(range(100))

    def dying(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == moment:
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(os, "fsync", dying(os.fsync))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a dead process cleans nothing
        with pytest.raises(Killed):
            save(run, 10 if same_step else 20, state={"n": 2})
    loaded = checkpoint.load(checkpoint.latest(run))
    assert loaded.state in ({"n": 1}, {"n": 2})
    path = save(run, 30, keep_last=1)
    assert checkpoint.latest(run) == path
    assert names(run) == ["latest", "step-00000030"]


@pytest.mark.parametrize("call", ["between", "after"])
def test_a_process_killed_between_the_renames_loses_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save(run, 10, state={"n": 1})
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if str(source).endswith(".part") and call == "between":
            raise Killed
        real(source, target)
        if str(source).endswith(".part"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            save(run, 10, state={"n": 2})
    assert checkpoint.load(checkpoint.latest(run)).state == {"n": 1 if call == "between" else 2}
    save(run, 20)
    assert names(run) == ["latest", "step-00000010", "step-00000020"]


@pytest.fixture
def cramped_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run with one checkpoint and too little room on its disk for a second one.

    The disk is a real one where the system lets us mount it, else the writer fails midway.
    """
    size = sum(array.nbytes for array in PARAMS.values())
    with small_disk(run.checkpoints, int(1.5 * size)) as mounted:
        save(run, 10)
        if not mounted:
            monkeypatch.setattr(mapped, "chunks", full_midway)
        yield run


def full_midway(source: NDArray[Any]) -> Iterator[NDArray[Any]]:
    yield source.reshape(-1)[:10]
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_while_saving_leaves_the_previous_checkpoint_whole(
    cramped_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "require_space", lambda *_: None)
    with pytest.raises(EnvironmentLacks, match="disk became full while saving .*step-00000020"):
        save(cramped_run, 20)
    assert names(cramped_run) == ["latest", "step-00000010"]
    checkpoint.load(checkpoint.latest(cramped_run))


def test_a_disk_too_small_is_refused_before_anything_is_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    monkeypatch.setattr(durable, "SPACE_MARGIN", 1e12)
    with pytest.raises(EnvironmentLacks, match=r"step-00000020 needs .* bytes on the disk of"):
        save(run, 20)
    assert names(run) == ["latest", "step-00000010"]


def test_a_full_disk_while_moving_latest_is_reported_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    real = durable.write_synced

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith("latest"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(durable, "write_synced", full)
    with pytest.raises(EnvironmentLacks, match="became full while writing .*latest"):
        save(run, 20)
    checkpoint.load(checkpoint.latest(run))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_never_saved(run: Run, value: float) -> None:
    save(run, 10)
    broken = PARAMS | {"lm_head.weight": np.full((320, 64), value, np.float32)}
    with pytest.raises(CheckpointError, match=r"lm_head.weight holds numbers that are not finite"):
        save(run, 20, params=broken)
    with pytest.raises(CheckpointError, match="x is float64, expected float32"):
        save(run, 20, params={"x": np.zeros(3)})
    assert names(run) == ["latest", "step-00000010"]


# What is wrong with a checkpoint.


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "missing", "changed"])
def test_a_damaged_file_is_named_with_another_checkpoint(run: Run, name: str, damage: str) -> None:
    older, path = save(run, 10), save(run, 20)
    file = path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-4] if damage == "truncated" else content)
    what = {"truncated": "has .* bytes, expected", "missing": "is missing", "changed": "has digest"}
    with pytest.raises(CheckpointError, match=rf"{name} {what[damage]}.*use {older} instead"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "state.json cannot be read"),
        ("[]", "is not of format 1"),
        ('{"format": 2}', "is not of format 1"),
        ('{"format": 1, "step": 5}', "state.json does not match its digest"),
    ],
)
def test_a_damaged_manifest_is_named(run: Run, content: str, message: str) -> None:
    path = save(run)
    (path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_a_foreign_directory_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of mlxhog: it holds no state"):
        checkpoint.load(checkpoint.locate(str(tmp_path), tmp_path))
    with pytest.raises(CheckpointError, match="it is not a directory"):
        checkpoint.load(tmp_path / "gone")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_numbers_that_are_not_finite_are_named(run: Run, file: str) -> None:
    path = save(run)
    held = {name: array.copy() for name, array in load_file(path / file).items()}
    name = sorted(held)[0]
    held[name].reshape(-1)[-1] = np.nan
    save_file(held, path / file)
    (path / "state.json").unlink()
    manifest.write(path, 1000, STATE)
    with pytest.raises(CheckpointError, match=rf"{name} holds numbers that are not finite"):
        checkpoint.load(path)
    checkpoint.load(path, verify=False)


def test_resuming_with_another_architecture_names_what_differs(run: Run) -> None:
    loaded = checkpoint.load(save(run))
    checkpoint.check_architecture(loaded, CONFIG | {"chunk_size": 128, "use_cache": True})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_architecture(loaded, CONFIG | {"num_heads": 4, "norm_eps": 1e-5})
    assert "norm_eps is 1e-06 there and 1e-05 here; num_heads is 2 there and 4 here" in str(
        caught.value
    )


# The tensor file by itself.


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08", b"not a tensor file at all", (10**9).to_bytes(8, "little") + b"{}"],
)
def test_a_foreign_tensor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x.safetensors is missing.*; copy it again"):
        tensors.read(tmp_path / "x.safetensors")


def test_a_tensor_type_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match="x has type F8_E4M3, expected float32"):
        tensors.read(path)


def test_an_io_error_while_writing_is_not_called_a_full_disk_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: NDArray[Any]) -> Iterator[NDArray[Any]]:
        yield source
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(mapped, "chunks", broken)
    with pytest.raises(OSError, match="Input/output") as caught:
        tensors.write(tmp_path / "x.safetensors", {"x": np.zeros(3, np.float32)})
    assert caught.value.errno == errno.EIO
    assert not list(tmp_path.iterdir())


def test_a_newest_checkpoint_without_its_record_is_named_and_no_older_one_is_taken(
    run: Run,
) -> None:
    older, newest = save(run, step=1), save(run, step=2)
    (newest / manifest.NAME).unlink()
    with pytest.raises(CheckpointError, match=rf"{newest.name} is damaged.*use {older}"):
        checkpoint.latest(run)
