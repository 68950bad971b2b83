"""Checkpoints: what was saved comes back, is found, and survives deaths; damage is named."""

import errno
import os
import shutil
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers

from mlxhog.base import mapped
from mlxhog.checkpoint import checkpoint, compatible, manifest
from mlxhog.checkpoint import run as runs
from mlxhog.data import tokenizers
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.errors import CheckpointError, EnvironmentLacks, RunError
from mlxhog.models import families
from mlxhog.models.families import init_params
from tests.checkpoint.formats.peers import OF_A_GPU
from tests.odd_disk import LACKS, held_elsewhere, odd_disk
from tests.pairs import each_of
from tests.saved import SMALL, names, save, saved_run
from tests.small_disk import small_disk

PARAMS = init_params(SMALL, seed=0)


def test_a_checkpoint_gives_back_what_was_saved(run):
    state = {"tokens": 123, "data": {"epoch": 0, "watermark": 4, "done": [6, 7], "torn": 0}}
    optimizer = {
        "m.1": np.arange(1000, dtype=np.float32),
        "steps": np.array([3, 4], np.uint64),
        "scalar": np.array(2.5, np.float32),
    }
    path = save(run, step=1000, state=state, optimizer=optimizer)
    loaded = checkpoint.load(path)
    assert path == run.checkpoints / "step-00001000"
    assert (loaded.step, loaded.state) == (1000, state)
    assert loaded.params.keys() == PARAMS.keys()
    assert all(np.array_equal(loaded.params[name], array) for name, array in PARAMS.items())
    assert loaded.optimizer.keys() == optimizer.keys()
    for name, array in optimizer.items():
        np.testing.assert_array_equal(loaded.optimizer[name], array, strict=True)
    assert loaded.model.hidden_size == SMALL.hidden_size


def test_a_checkpoint_that_its_disk_does_not_give_back_is_noticed_when_it_is_saved(
    run, monkeypatch
):
    save(run, step=1)
    earlier = names(run)
    unreadable = Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(mapped, "map_file", unreadable)
    with pytest.raises(
        EnvironmentLacks, match=r"not give back .* nothing was saved.*with --runs-dir"
    ):
        save(run, step=2)
    monkeypatch.undo()
    assert names(run) == earlier
    assert checkpoint.load(checkpoint.latest(run)).step == 1


@each_of("number", LACKS["shared_maps"])
def test_checkpoints_on_a_disk_without_shared_mappings_are_read(tmp_path, number):
    with odd_disk(tmp_path, "shared_maps", number):
        saved = saved_run(tmp_path, step=3)
        loaded = checkpoint.load(checkpoint.latest(saved))
    assert all(np.array_equal(loaded.params[name], array) for name, array in PARAMS.items())


def test_the_best_checkpoint_is_kept_and_found_on_a_disk_without_links_and_after_it(tmp_path):
    def best():
        specs = (f"{saved.name}/best", str(saved.checkpoints / "best"))
        return {checkpoint.find(spec, tmp_path)[1].name for spec in specs}

    with odd_disk(tmp_path, "links", errno.EPERM):
        saved = saved_run(tmp_path, step=1)
        checkpoint.mark_best(saved, saved.checkpoints / "step-00000001")
        save(saved, step=2, keep_last=1)
        assert best() == {"step-00000001"}
    save(saved, step=3, keep_last=2)
    checkpoint.mark_best(saved, saved.checkpoints / "step-00000003")
    assert best() == {"step-00000003"}


def test_a_run_that_another_machine_has_taken_gets_no_further_checkpoint(run):
    with run.lock():
        save(run, step=1)
        held_elsewhere(run.directory)
        for act in (lambda: save(run, step=2), lambda: run.write_status({"status": "running"})):
            with pytest.raises(EnvironmentLacks, match="now belongs to process 7 on another"):
                act()
    assert names(run) == ["latest", "step-00000001"]


def test_a_tokenizer_travels_with_the_checkpoint(run):
    tokenizer = tokenizers.train_bpe([b"the state of the union " * 9], 270)
    loaded = checkpoint.load(save(run, step=1, tokenizer=tokenizer))
    compatible.check_tokenizer(loaded, tokenizer)
    with pytest.raises(CheckpointError, match=rf"{tokenizer.sha256}.*{ByteTokenizer().sha256}"):
        compatible.check_tokenizer(loaded, ByteTokenizer())


def test_transformers_loads_a_checkpoint_and_computes_the_same_logits(run):
    sizes = replace(SMALL, hidden_size=128, chunk_size=16)
    params = init_params(sizes, seed=1)
    path = save(run, sizes, params, step=1)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert type(model).__name__ == "xLSTMForCausalLM"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32

    config = transformers.AutoConfig.for_model(**sizes.to_dict())
    direct = transformers.AutoModelForCausalLM.from_config(config)
    direct.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})
    tokens = torch.arange(40)[None] * 7 % 257
    with torch.no_grad():
        logits = model.eval()(tokens).logits
        assert torch.equal(logits, direct.eval()(tokens, use_cache=False).logits)


def test_transformers_loads_a_checkpoint_that_began_with_kernels_of_the_package(run):
    fields = SMALL.to_dict() | {"hidden_size": 128, "embedding_dim": 128} | OF_A_GPU
    model = families.read(fields)
    path = save(run, model, init_params(model, seed=1), step=1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert theirs.config.mode == "inference"
    assert theirs.config.autocast_kernel_dtype == "float32"
    with torch.no_grad():
        assert theirs.eval()(torch.arange(40)[None]).logits.isfinite().all()


def test_latest_and_the_link_to_the_model_move_and_only_the_last_few_remain(run):
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        checkpoint.latest(run)
    for step in (10, 20, 30, 40):
        path = save(run, step=step, keep_last=2)
        assert checkpoint.latest(run) == run.model.resolve() == path
        assert checkpoint.load(run.model).step == step
    assert names(run) == ["latest", "step-00000030", "step-00000040"]
    moved = run.directory.rename(run.directory.with_name("moved"))
    assert (moved / "model" / "config.json").is_file()  # the link is relative


def test_removed_checkpoints_are_made_again_and_what_has_the_name_of_a_link_stays(run):
    save(run, step=10)
    shutil.rmtree(run.checkpoints)
    run.model.unlink()
    places = [run.checkpoints / "latest", run.model, run.checkpoints / "best"]
    for place in places:
        place.mkdir(parents=True)
        (place / "mine.txt").touch()
    notes = []
    path = save(run, step=20, note=notes.append)
    assert checkpoint.latest(run) == path
    assert ["a folder has this name" in notes[0], f"{run.model} is a folder" in notes[1]] == [
        True
    ] * 2
    with pytest.raises(
        EnvironmentLacks, match=r"best is a folder .* lead to step-00000020; rename"
    ):
        checkpoint.mark_best(run, path)
    assert all((place / "mine.txt").exists() for place in places)


def test_of_a_strange_latest_one_line_is_a_name_and_a_file_for_the_folder_is_named(run):
    save(run, step=10)
    (run.checkpoints / "latest").write_text("dear diary\nmy secret\n")
    with pytest.raises(CheckpointError, match="dear diary is damaged: latest names it") as raised:
        checkpoint.latest(run)
    assert "secret" not in str(raised.value)
    shutil.rmtree(run.checkpoints)
    run.checkpoints.touch()
    with pytest.raises(EnvironmentLacks, match=rf"{run.checkpoints} is something else; rename or"):
        save(run, step=20)


def test_a_checkpoint_that_latest_cannot_name_is_the_latest(run, monkeypatch):
    first, notes = save(run, step=10), []
    monkeypatch.setattr(checkpoint, "replace_file", Mock(side_effect=OSError(errno.EIO, "no")))
    assert checkpoint.latest(run) == first
    assert checkpoint.latest(run) != (second := save(run, step=20, note=notes.append))
    assert checkpoint.latest(run) == second
    assert "step-00000020 is saved; writing" in notes[0]


def test_a_checkpoint_is_found_by_its_path_its_run_or_its_name_in_it_and_with_its_run(
    run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first, path, root = save(run, step=1), save(run, step=2), run.directory.parent
    checkpoint.mark_best(run, first)
    for spec, expected in (
        (str(path), path), (str(run.directory), path), (run.name, path), (run.name[-3:], path),
        ("latest", path), (str(first), first), (f"{run.name}/best", first),
        (str(run.checkpoints / "best"), first), ("latest/best", first), ("latest/latest", path),
        (str(run.model), path),
    ):  # fmt: skip
        assert checkpoint.find(spec, root) == checkpoint.resumable(spec, root) == (run, expected)
        if spec != str(run.model):
            assert runs.find(spec, root) == run  # of every command that takes a run
    for spec in ("latest/best", str(first)):
        with pytest.raises(RunError):  # to remove a run it has to be named itself
            runs.find(spec, root, whole=True)
    file = "model.safetensors"
    assert checkpoint.find(str(run.model / file), root) == (None, path / file)
    assert checkpoint.lasting_name(str(run.model), root) == str(path)
    shutil.copytree(first, run.name)  # the name of a run is that run
    assert checkpoint.find(run.name, root) == (run, path)
    assert checkpoint.locate("latest", root, "step-00000001") == first
    assert checkpoint.locate(run.name, root, "best").resolve() == first.resolve()
    for which in ("step-00000003", "..", "../checkpoints/step-00000001", ""):
        with pytest.raises(CheckpointError, match="it has step-00000001, step-00000002"):
            checkpoint.locate("latest", root, which)
    for spec in (str(path), str(run.model), f"{run.name}/best"):
        with pytest.raises(CheckpointError, match="--checkpoint is 'best'; name its run"):
            checkpoint.locate(spec, root, "best")
    (first / "model.safetensors").unlink()
    assert checkpoint.locate(str(first), root) == first  # damaged, and no other is taken


@each_of(
    ("last", "takes_best"), [(2.0, False), (2.019, False), (2.021, True), (None, False)]
)  # fmt: skip
def test_a_run_that_ended_worse_than_its_noise_gives_its_best_but_continues_from_the_last(
    run, capsys, last, takes_best
):
    best, newest, root = save(run, step=1), save(run, step=2), run.directory.parent
    checkpoint.mark_best(run, best)
    score = {"bits_per_byte": 2.0, "step": 1, "text": "x"}
    result = {"val_bits_per_byte": last, "val_step": 2}
    end = {"checkpoint": str(newest), "best": score, "result": result}
    run.write_status({"status": "running", "best": score, "earlier": end})  # a resume was killed
    assert (checkpoint.better(run) is not None) == takes_best
    run.write_status(end)
    for spec in (run.name, "latest", str(run.directory)):
        assert checkpoint.locate(spec, root) == (best if takes_best else newest)
        assert checkpoint.resumable(spec, root)[1] == newest
    assert (": the best checkpoint, 2.000" in capsys.readouterr().err) == takes_best
    assert checkpoint.locate(f"{run.name}/latest", root) == newest
    assert checkpoint.locate(f"{run.name}/best", root) == best
    save(run, step=3)  # trained on since that score
    assert checkpoint.locate(run.name, root).name == "step-00000003"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may handle it."""


@pytest.mark.parametrize("moment", range(8))
@pytest.mark.parametrize("same_step", [False, True])
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(
    run, monkeypatch, moment, same_step
):
    save(run, step=10, state={"n": 1})
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
            save(run, step=10 if same_step else 20, state={"n": 2})
    loaded = checkpoint.load(checkpoint.latest(run))
    assert loaded.state in ({"n": 1}, {"n": 2})
    path = save(run, step=30, keep_last=1)
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
        save(run, step=10)
        if not mounted:
            monkeypatch.setattr(mapped, "chunks", full_midway)
        with pytest.raises(EnvironmentLacks, match="full while saving .*step-00000020"):
            save(run, step=20)
        assert names(run) == ["latest", "step-00000010"]
        monkeypatch.undo()
        checkpoint.load(checkpoint.latest(run))


@each_of("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_never_saved(run, value):
    save(run, step=10)
    broken = PARAMS | {"lm_head.weight": np.full((320, 32), value, np.float32)}
    with pytest.raises(CheckpointError, match=r"lm_head.weight has numbers that are not finite"):
        save(run, step=20, params=broken)
    with pytest.raises(CheckpointError, match="x is float64, expected float32"):
        save(run, step=20, params={"x": np.zeros(3)})
    assert names(run) == ["latest", "step-00000010"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"]
)
def test_a_damaged_file_is_named_with_another_checkpoint(run, name):
    older, path = save(run, step=10), save(run, step=20)
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
    path = save(run, step=1)
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
    loaded = checkpoint.load(save(run, step=1))
    others = {"chunk_size": 128, "use_cache": True, "zero_init_residual": True}
    compatible.check_architecture(loaded, families.read(SMALL.to_dict() | others))
    words = "norm_eps is 1e-06 there and 1e-05 here; num_heads is 2 there and 4 here"
    other = {"num_heads": 4, "norm_eps": 1e-5}
    with pytest.raises(CheckpointError, match=words):
        compatible.check_architecture(loaded, families.read(SMALL.to_dict() | other))
