"""`mlxhog convert`: refusals, without a half written or a lost file."""

import errno
import shutil
from pathlib import Path

import pytest
import torch

from mlxhog.base import durable, mapped
from mlxhog.checkpoint import formats
from mlxhog.cli import main
from tests.checkpoint.formats import peers
from tests.checkpoint.formats.peers import assert_same, state_dict
from tests.pairs import each_of
from tests.small_disk import small_disk


def convert(*words):
    return main(["convert", *map(str, words)])


@pytest.fixture
def hf(tmp_path):
    return peers.save_transformers(tmp_path / "hf")


def refused(capsys, code, message, *words):
    assert convert(*words) == code
    out, err = capsys.readouterr()
    assert message in err, err
    assert len(err.splitlines()) == 1
    assert out == ""


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_transformers_cannot_compute_is_refused(tmp_path, capsys):
    v1 = peers.save_package(peers.v1([1]), tmp_path / "v1")
    bare = peers.save_package(peers.large(add_out_norm=False), tmp_path / "bare")
    refused(capsys, 2, "transformers has no model for", v1, tmp_path / "x", "--to", "hf")
    refused(capsys, 2, "add_out_norm false", bare, tmp_path / "x", "--to", "hf")
    assert entries(tmp_path) == ["bare", "v1"]


def test_a_target_that_exists_is_replaced_only_on_request(tmp_path, hf, capsys):
    target = tmp_path / "b"
    assert convert(hf, target, "--to", "hf", "--quiet") == 0
    capsys.readouterr()
    refused(capsys, 2, "or replace it with --force", hf, target, "--to", "xlstm")
    assert convert(hf, target, "--to", "xlstm", "--force") == 0
    assert formats.open(target).format == "xlstm"
    capsys.readouterr()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    refused(
        capsys, 2, "is not a checkpoint's directory", hf, tmp_path / "home", "--to", "hf", "--force"
    )
    assert entries(tmp_path) == ["b", "hf", "home"]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_file_of_macos_finder_does_not_block_a_target(tmp_path, hf, force):
    target = tmp_path / "b"
    target.mkdir()
    if force:
        assert convert(hf, target, "--to", "hf", "--quiet") == 0
    (target / ".DS_Store").touch()
    assert convert(hf, target, "--to", "xlstm", *force) == 0
    assert formats.open(target).format == "xlstm"


@pytest.mark.parametrize("other", ["README.md", ".git"])
def test_replacing_a_checkpoint_deletes_nothing_else(tmp_path, hf, capsys, other):
    target = Path(shutil.copytree(hf, tmp_path / "b"))
    (target / other).mkdir() if other == ".git" else (target / other).touch()
    before = entries(target)
    message = f"b has {other}, which --force would delete"
    refused(capsys, 2, message, hf, target, "--to", "xlstm", "--force")
    assert entries(target) == before


def test_a_target_inside_a_file_is_refused(tmp_path, hf, capsys):
    (tmp_path / "a").touch()
    refused(capsys, 2, "a is not a directory", hf, tmp_path / "a" / "b" / "c", "--to", "hf")


def test_a_checkpoint_can_be_replaced_by_itself_in_another_form(tmp_path, hf):
    before = state_dict(hf)
    assert convert(hf, hf, "--to", "xlstm", "--force") == 0
    assert convert(hf, hf, "--to", "hf", "--force") == 0
    assert_same(state_dict(hf), before)
    assert entries(tmp_path) == ["hf"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--to is missing"),
        (("--to", "mlxhg"), "wanted one of hf, xlstm, mlxhog; did you mean 'mlxhog'?"),
        (("--to", "hf", "--dtype", "int8"), "wanted one of keep, float32, bfloat16, float16"),
        (("--to", "hf", "--shard-size", "many"), "wanted a size such as 5GB"),
        (("--to", "hf", "--shard-size", "0"), "wanted a size such as 5GB"),
        (("--to", "hf", "--fused"), "--fused is for xLSTM Large with --to xlstm"),
        (("--to", "xlstm", "--slstm", "cuda"), "--slstm cuda is for v1"),
        (("--to", "hf", "--config", "gone.json"), "cannot read the config gone.json"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(tmp_path, hf, words, message, capsys):
    refused(capsys, 2, message, hf, tmp_path / "b", *words)
    assert entries(tmp_path) == ["hf"]


DAMAGED = "has numbers that are not finite; use another checkpoint of the same model"


@each_of(
    ("value", "dtype", "reason"),
    [
        (float("nan"), "keep", DAMAGED),
        (float("nan"), "float16", DAMAGED),
        (float("inf"), "float32", DAMAGED),
        (1e6, "float16", "has numbers too large for float16; use --dtype float32 or keep"),
    ],
)
def test_numbers_that_are_not_finite_or_too_large_for_the_type_are_named(
    tmp_path, value, dtype, reason, capsys
):
    model = peers.large()
    with torch.no_grad():
        model.backbone.blocks[1].ffn.proj_up.weight[3, 4] = value
    source = peers.save_package(model, tmp_path / "a")
    name = f"backbone.blocks.1.ffn.proj_up.weight of {source} {reason}"
    refused(capsys, 2, name, source, tmp_path / "b", "--to", "hf", "--dtype", dtype)
    assert entries(tmp_path) == ["a"]


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, hf, monkeypatch, capsys):
    monkeypatch.setattr(durable, "SPACE_MARGIN", 1e12)
    refused(capsys, 3, "checkpoint b needs", hf, tmp_path / "b", "--to", "hf")
    assert entries(tmp_path) == ["hf"]


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path, hf, monkeypatch, capsys):
    monkeypatch.setattr(durable, "SPACE_MARGIN", 0)  # as if other programs filled it
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 200_000) as mounted:
        if not mounted:
            monkeypatch.setattr(mapped, "chunks", full_after(20))
        target = tmp_path / "disk" / "b"
        refused(capsys, 3, "disk became full while writing", hf, target, "--to", "hf")
        assert entries(tmp_path / "disk") == []


def full_after(n):
    """A reader of arrays that fails with a full disk after some of them."""
    real, calls = mapped.chunks, iter(range(n))

    def chunks(source):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield from real(source)

    return chunks


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, hf, force, monkeypatch, capsys):
    if force:
        shutil.copytree(hf, tmp_path / "b")
    before = entries(tmp_path)
    monkeypatch.setattr(mapped, "chunks", full_after(20))
    words = [hf, tmp_path / "b", "--to", "mlxhog", *(["--force"] if force else [])]
    refused(capsys, 3, "disk became full while writing", *words)
    assert entries(tmp_path) == before
    if force:
        assert formats.open(tmp_path / "b").format == "hf"


def test_what_a_killed_process_left_is_removed(tmp_path, hf):
    (tmp_path / "b.999999999.part").mkdir()
    (tmp_path / "b.999999999.part" / "model.safetensors").touch()
    assert convert(hf, tmp_path / "b", "--to", "hf") == 0
    assert entries(tmp_path) == ["b", "hf"]


def test_a_process_killed_while_it_replaces_a_checkpoint_loses_neither(tmp_path, hf, capsys):
    assert convert(hf, tmp_path / "b", "--to", "xlstm") == 0
    (tmp_path / "b").rename(tmp_path / "b.999999999.old")
    capsys.readouterr()
    refused(capsys, 2, "or replace it with --force", hf, tmp_path / "b", "--to", "hf")
    assert entries(tmp_path) == ["b", "hf"]
    assert formats.open(tmp_path / "b").format == "xlstm"
