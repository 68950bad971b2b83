"""The frozen model of an adapter: its digest, and where a run's checkpoints look for it."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlxhog.base import mapped, tensors
from mlxhog.checkpoint import checkpoint, formats, manifest
from mlxhog.checkpoint.base_model import BaseModel, described_adapter, read_adapter
from mlxhog.checkpoint.formats.converting import convert
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families
from mlxhog.models.adapters import LoRA
from tests.saved import SMALL, names, save, saved_run, write_adapter

ADAPTED = replace(SMALL, adapter=LoRA(rank=2))


def bases(folder):
    """The path of a whole checkpoint, and of one with other numbers."""
    params = families.init_params(SMALL, seed=1)
    runs = saved_run(folder / "runs", "a"), saved_run(folder / "runs", "b", params=params)
    return [run.model.resolve() for run in runs]


def adapter_checkpoint(run, base):
    """A checkpoint of a run with an adapter, as training saves it."""
    folder = run / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    params = families.init_params(ADAPTED, seed=2)
    write_adapter(folder, ADAPTED, params, base=base.path)
    state = {"base": {"path": str(base.path), "title": base.title, "digest": base.digest}}
    manifest.write(folder, step=1, state=state)
    return folder


def test_a_base_in_a_process_of_its_own_has_the_same_tensors(tmp_path):
    first, _ = bases(tmp_path)
    opened = formats.open(first)
    base = pickle.loads(pickle.dumps(BaseModel.of(opened, "bfloat16")))
    assert (base.path, base.title, base.weights) == (first, opened.title, "bfloat16")
    for name, array in base.tensors().items():
        np.testing.assert_array_equal(array, opened.tensors[name])


def test_a_digest_is_of_names_types_and_numbers_whatever_the_files(tmp_path):
    first, second = bases(tmp_path)
    digest = formats.open(first).digest()
    convert(formats.open(first), tmp_path / "hf", "hf")
    convert(formats.open(first), tmp_path / "bf16", "hf", "bfloat16")
    assert formats.open(tmp_path / "hf").digest() == digest
    others = {formats.open(path).digest() for path in (second, tmp_path / "bf16")}
    assert len({digest, *others}) == 3


def test_a_digest_is_computed_once_for_a_file_and_its_hard_links(tmp_path, monkeypatch):
    first, _ = bases(tmp_path)
    digest = formats.open(first).digest()
    (tmp_path / "copy").mkdir()
    for name in ("model.safetensors", "config.json"):
        os.link(first / name, tmp_path / "copy" / name)
    opened = formats.open(tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "chunks", lambda array: 1 / 0)
        assert opened.digest() == digest
    changed = {name: array + 1 for name, array in opened.tensors.items()}
    (tmp_path / "copy" / "model.safetensors").unlink()
    tensors.write(tmp_path / "copy" / "model.safetensors", changed)
    assert formats.open(tmp_path / "copy").digest() != digest


def test_a_run_keeps_its_base_when_it_is_gone_elsewhere(tmp_path):
    first, _ = bases(tmp_path)
    folder = adapter_checkpoint(tmp_path / "run", BaseModel.of(formats.open(first)))
    first.rename(tmp_path / "run" / "base")
    opened = formats.open(folder)
    assert opened.base.path == tmp_path / "run" / "base"
    assert opened.config.adapter is not None


def test_a_base_that_is_named_by_a_link_of_its_run_is_kept_when_the_link_moves(tmp_path):
    run, own = (saved_run(tmp_path / "runs", name) for name in "ab")
    for name in ("", "model.safetensors"):
        path = checkpoint.locate(str(run.model / name), tmp_path)
        base = BaseModel.of(formats.open(path))
        assert base.kept(own).path == Path("base")
        shutil.rmtree(own.directory / "base")
    digest, kept = base.digest, base.kept(own).inside(own.directory)
    save(run, params=families.init_params(SMALL, seed=5), step=1, keep_last=1)
    assert formats.open(run.model).digest() != digest == formats.open(kept.path).digest()


@pytest.mark.parametrize("to", ["peft", "mlx-lm-adapter"])
def test_an_exported_adapter_of_a_moved_run_names_the_base_where_it_is(tmp_path, to):
    first, _ = bases(tmp_path)
    base = BaseModel.of(formats.open(first))
    (tmp_path / "run").mkdir()
    kept = replace(base, path=first.rename(tmp_path / "run" / "base"))
    adapter_checkpoint(tmp_path / "run", kept)
    folder = (tmp_path / "run").rename(tmp_path / "moved") / "checkpoints" / "step-00000001"
    for taken in (False, True):  # by another run
        if taken:
            bases(tmp_path / "others")[1].rename(tmp_path / "run")
            (tmp_path / "run").rename(tmp_path / "other")
            (tmp_path / "run").mkdir()
            (tmp_path / "other").rename(kept.path)
        convert(formats.open(folder), tmp_path / f"out-{taken}", to)
        opened = formats.open(tmp_path / f"out-{taken}")
        assert opened.base.path == tmp_path / "moved" / "base"
        assert opened.base.digest() == base.digest


def test_an_adapter_with_another_copy_of_its_base_names_that_copy(tmp_path):
    first, _ = bases(tmp_path)
    folder = adapter_checkpoint(tmp_path / "run", BaseModel.of(formats.open(first)))
    copy = formats.open(first.rename(tmp_path / "copy"))
    assert formats.open(folder, base=copy).base_name == str(tmp_path / "copy")


def test_the_file_of_a_checkpoint_is_its_folder_as_a_base(tmp_path):
    first, _ = bases(tmp_path)
    base = BaseModel.of(formats.open(first / "model.safetensors"))
    assert base == BaseModel.of(formats.open(first))
    (tmp_path / "several").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(first / name, tmp_path / "several" / name.replace("model", "one"))
    one = tmp_path / "several" / "one.safetensors"
    shutil.copyfile(one, tmp_path / "several" / "two.safetensors")
    assert BaseModel.of(formats.open(one)).path == one


def test_an_adapter_on_another_base_is_refused_with_both_digests(tmp_path):
    first, second = bases(tmp_path)
    one, other = (BaseModel.of(formats.open(path)) for path in (first, second))
    folder = adapter_checkpoint(tmp_path / "run", one)
    second.rename(tmp_path / "run" / "base")
    with pytest.raises(CheckpointError, match="is an adapter for another base model") as error:
        formats.open(folder)
    place = tmp_path / "run" / "base"
    for part in (one.digest, other.digest, f"copy that to {place}"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match="; use that$"):
        formats.open(folder, base=formats.open(place))


def test_a_base_that_was_moved_is_copied_to_where_the_message_says(tmp_path):
    first, _ = bases(tmp_path)
    folder = adapter_checkpoint(tmp_path / "run", BaseModel.of(formats.open(first)))
    copied = tmp_path / "copied"  # without its run
    shutil.copytree(folder, copied)
    moved = first.rename(tmp_path / "moved")
    for path, place in ((copied, first), (folder, tmp_path / "run" / "base")):
        with pytest.raises(CheckpointError) as error:
            formats.open(path)
        assert str(error.value).endswith(f"is not there; copy or move it to {place}")
        shutil.copytree(moved, place)
        assert formats.open(path).config.adapter is not None
        shutil.rmtree(place)


def test_an_adapter_is_no_base_of_another(tmp_path):
    first, _ = bases(tmp_path)
    base = BaseModel.of(formats.open(first))
    folder = adapter_checkpoint(tmp_path / "run", base)
    upon = adapter_checkpoint(tmp_path / "next", replace(base, path=folder))
    with pytest.raises(ConfigError, match="is an adapter itself; merge it before: mlxhog convert"):
        formats.open(upon)


def test_an_adapter_that_is_not_finite_is_not_saved(tmp_path):
    base, run = BaseModel.of(formats.open(bases(tmp_path)[0])), saved_run(tmp_path / "runs", "c")
    params = {
        name: families.init_params(ADAPTED, 0)[name] for name in families.trainable_spec(ADAPTED)
    }
    next(iter(params.values()))[0, 0] = np.nan
    with pytest.raises(CheckpointError, match="lora_A.weight has numbers that are not finite"):
        save(run, ADAPTED, params, step=3, base=base)
    assert names(run) == ["latest", "step-00000000"]


def test_a_reader_learns_the_adapter_of_a_run_or_that_its_file_is_damaged(tmp_path):
    base, path = BaseModel.of(formats.open(bases(tmp_path)[0]), "4bit"), tmp_path / "adapter.json"
    path.write_bytes(described_adapter(ADAPTED, base))
    assert read_adapter(path, SMALL) == (ADAPTED, base)
    for content in (b"{}", b"[", b'{"adapter": {"name": "lora"}, "base": {"path": 1}}'):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="does not say what adapter .*--mode checkpoint"):
            read_adapter(path, SMALL)
