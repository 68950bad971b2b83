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


def test_a_target_is_replaced_only_on_request_and_nothing_but_a_checkpoint(tmp_path, hf, capsys):
    target = Path(shutil.copytree(hf, tmp_path / "b"))
    words = (hf, target, "--to", "xlstm")
    refused(capsys, 2, "or replace it with --force", *words)
    (target / "README.md").touch()
    refused(capsys, 2, "b has README.md, which --force would delete", *words, "--force")
    (target / "README.md").unlink()
    (target / ".DS_Store").touch()  # of macOS' Finder
    assert convert(*words, "--force") == 0
    assert formats.open(target).format == "xlstm"
    capsys.readouterr()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    home = (hf, tmp_path / "home", "--to", "hf", "--force")
    refused(capsys, 2, "is not a checkpoint's directory", *home)
    (tmp_path / "a").touch()
    refused(capsys, 2, "a is not a directory", hf, tmp_path / "a" / "b" / "c", "--to", "hf")
    assert entries(tmp_path) == ["a", "b", "hf", "home"]


def test_a_checkpoint_can_be_replaced_by_itself_in_another_form(tmp_path, hf):
    before = state_dict(hf)
    assert convert(hf, hf, "--to", "xlstm", "--force") == 0
    assert convert(hf, hf, "--to", "hf", "--force") == 0
    assert_same(state_dict(hf), before)
    assert entries(tmp_path) == ["hf"]


def test_wrong_options_are_refused_before_anything_is_written(tmp_path, hf, capsys):
    v1 = peers.save_package(peers.v1([1]), tmp_path / "v1")
    bare = peers.save_package(peers.large(add_out_norm=False), tmp_path / "bare")
    for source, words, message in [
        (hf, "", "--to is missing"),
        (hf, "--to hf --shard-size many", "wanted a size such as 5GB"),
        (hf, "--to hf --shard-size 0", "wanted a size such as 5GB"),
        (hf, "--to hf --fused", "--fused is for xLSTM Large with --to xlstm"),
        (hf, "--to xlstm --slstm cuda", "--slstm cuda is for v1"),
        (hf, "--to hf --config gone.json", "cannot read the config gone.json"),
        (v1, "--to hf", "transformers has no model for"),
        (bare, "--to hf", "add_out_norm false"),
    ]:
        refused(capsys, 2, message, source, tmp_path / "b", *words.split())
    assert entries(tmp_path) == ["bare", "hf", "v1"]


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


REAL = mapped.chunks


def full_after(n):
    """A reader of arrays that fails with a full disk after some of them."""
    calls = iter(range(n))

    def chunks(source):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield from REAL(source)

    return chunks


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, hf, monkeypatch, capsys):
    target = Path(shutil.copytree(hf, tmp_path / "b"))
    for words in ([tmp_path / "c"], [target, "--force"]):
        monkeypatch.setattr(mapped, "chunks", full_after(20))
        refused(capsys, 3, "disk became full while writing", hf, *words, "--to", "mlxhog")
        assert entries(tmp_path) == ["b", "hf"]
    assert formats.open(target).format == "hf"


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
