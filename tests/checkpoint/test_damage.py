"""Deaths and full disks while a checkpoint is saved, and every kind of damage named."""

import errno
import os
import shutil

import numpy as np
import pytest

from mlxhog.base import mapped
from mlxhog.checkpoint import checkpoint, manifest
from mlxhog.errors import CheckpointError, EnvironmentLacks
from tests.checkpoint.conftest import CONFIG, PARAMS, names, save
from tests.pairs import each_of
from tests.small_disk import small_disk


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may handle it."""


@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("same_step", [False, True])
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(
    run, monkeypatch, moment, same_step
):
    save(run, 10, state={"n": 1})
    calls = iter(range(100))

    def dying(real):
        def call(*arguments, **options):
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


def full_midway(source):
    yield source.reshape(-1)[:10]
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_while_saving_leaves_the_previous_checkpoint_whole(run, monkeypatch):
    """The disk is a real one where the system lets us mount it, else the writer fails midway."""
    size = sum(array.nbytes for array in PARAMS.values())
    monkeypatch.setattr(checkpoint, "require_space", lambda *_: None)
    with small_disk(run.checkpoints, int(1.5 * size)) as mounted:
        save(run, 10)
        if not mounted:
            monkeypatch.setattr(mapped, "chunks", full_midway)
        with pytest.raises(EnvironmentLacks, match="full while saving .*step-00000020"):
            save(run, 20)
        assert names(run) == ["latest", "step-00000010"]
        monkeypatch.undo()
        checkpoint.load(checkpoint.latest(run))


@each_of("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_never_saved(run, value):
    save(run, 10)
    broken = PARAMS | {"lm_head.weight": np.full((320, 64), value, np.float32)}
    with pytest.raises(CheckpointError, match=r"lm_head.weight has numbers that are not finite"):
        save(run, 20, params=broken)
    with pytest.raises(CheckpointError, match="x is float64, expected float32"):
        save(run, 20, params={"x": np.zeros(3)})
    assert names(run) == ["latest", "step-00000010"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"]
)
def test_a_damaged_file_is_named_with_another_checkpoint(run, name):
    older, path = save(run, 10), save(run, 20)
    whole = (path / name).read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content, what in (
        (whole[:-4], "has .* bytes, expected"), (changed, "has digest"), (None, "is missing"),
    ):  # fmt: skip
        (path / name).unlink() if content is None else (path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} {what}.*use {older} instead"):
            checkpoint.load(path)


@each_of(
    ("content", "message"),
    [
        ("{", "state.json cannot be read"),
        ("[]", "is not of format 1"),
        ('{"format": 2}', "is not of format 1"),
        ('{"format": 1, "step": 5}', "state.json does not match its digest"),
        (None, "is not a checkpoint of mlxhog: it has no state.json"),
    ],
)
def test_a_damaged_manifest_is_named(run, content, message):
    path = save(run)
    (path / "state.json").unlink()
    if content is not None:
        (path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_a_newest_checkpoint_without_its_record_is_named_and_no_older_one_is_taken(run):
    older, newest = save(run, step=1), save(run, step=2)
    (newest / manifest.NAME).unlink()
    with pytest.raises(CheckpointError, match=rf"{newest.name} is damaged.*use {older}"):
        checkpoint.latest(run)
    (run.checkpoints / "latest").write_text("../../elsewhere\n")
    with pytest.raises(CheckpointError, match=rf"elsewhere is damaged: latest names.*use {older}"):
        checkpoint.latest(run)


def test_resuming_with_another_architecture_names_what_differs(run):
    loaded = checkpoint.load(save(run))
    others = {"chunk_size": 128, "use_cache": True, "zero_init_residual": True}
    checkpoint.check_architecture(loaded, CONFIG | others)
    words = "norm_eps is 1e-06 there and 1e-05 here; num_heads is 2 there and 4 here"
    with pytest.raises(CheckpointError, match=words):
        checkpoint.check_architecture(loaded, CONFIG | {"num_heads": 4, "norm_eps": 1e-5})
