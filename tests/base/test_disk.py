"""What the disk of a folder lacks is found out by itself, has a fall-back, and is said."""

import errno
import fcntl
import os
import tempfile
from dataclasses import asdict
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from mlxhog.base import disk, durable, locks, mapped, tensors
from mlxhog.errors import CheckpointError, EnvironmentLacks
from tests.odd_disk import EVERY, LACKS, odd_disk
from tests.pairs import each_of


def fail(number):
    return Mock(side_effect=OSError(number, os.strerror(number)))


@each_of("kind, number", EVERY)
def test_a_disk_is_asked_for_each_ability_and_the_user_told_what_it_lacks(tmp_path, kind, number):
    with odd_disk(tmp_path, kind, number):
        assert asdict(disk.disk_of(tmp_path)) == {name: name != kind for name in LACKS}
        assert disk.note(tmp_path).count("no ") == 1
        assert list(tmp_path.iterdir()) == []
    other = tmp_path / "whole"
    other.mkdir()
    assert disk.note(other) == ""


@each_of("kind, number", EVERY)
def test_files_lines_folders_and_tensors_are_written_and_read_on_any_disk(tmp_path, kind, number):
    with odd_disk(tmp_path, kind, number):
        durable.replace_file(tmp_path / "a", b"x")
        for line in (b"one\n", b"tw", b"two\n"):
            durable.append_lines(tmp_path / "lines", line, synced=True)
        assert durable.read_lines(tmp_path / "lines", 0, 100) == b"one\ntwo\n"
        with durable.new_directory(tmp_path / "b") as part:
            tensors.write(part / "t", {"x": np.arange(9, dtype=np.float32)})
        np.testing.assert_array_equal(tensors.read(tmp_path / "b/t")["x"], np.arange(9))
        assert durable.replace_link(tmp_path / "link", tmp_path / "b") == (kind != "links")
        with locks.lock(tmp_path, EnvironmentLacks):
            assert locks.is_locked(tmp_path)
        assert not locks.is_locked(tmp_path)


def test_a_refusal_of_what_the_disk_can_do_stays_an_error(tmp_path, monkeypatch):
    disk.disk_of(tmp_path)
    for place, name, act in (
        (os, "fsync", lambda: durable.sync(tmp_path)),
        (os, "symlink", lambda: durable.replace_link(tmp_path / "link", tmp_path)),
        (fcntl, "flock", lambda: durable.append_lines(tmp_path / "lines", b"x\n")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail(errno.EIO))
            with pytest.raises((OSError, EnvironmentLacks), match="Input/output"):
                act()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail(errno.EIO))
        (tmp_path / "failing").mkdir()
        with pytest.raises(OSError, match="Input/output"):  # of its files, too
            durable.sync(tmp_path / "failing")


def test_a_file_that_cannot_be_mapped_is_read_and_its_header_checked(tmp_path, monkeypatch):
    path = tmp_path / "t"
    tensors.write(path, {"x": np.arange(9, dtype=np.float32)})
    monkeypatch.setattr(mapped._Mapping, "__new__", fail(errno.ENODEV), raising=False)
    x = tensors.read(path)["x"]
    np.testing.assert_array_equal(x, np.arange(9))
    assert not x.flags.writeable
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="truncated"):
        tensors.read(path)


def test_where_no_disk_has_locks_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: os.fspath(tmp_path))
    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOLCK))
    with pytest.raises(
        EnvironmentLacks, match="No locks available.*--runs-dir, XDG_CACHE_HOME, TMPDIR"
    ):
        durable.append_lines(tmp_path / "lines", b"x\n")


def test_a_disk_that_does_not_know_its_space_is_written_to(tmp_path, monkeypatch):
    unknown = SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=0)
    for answer in (fail(errno.ENOSYS), Mock(return_value=unknown)):
        monkeypatch.setattr(os, "statvfs", answer)
        durable.require_space(tmp_path, 1, "a file")
