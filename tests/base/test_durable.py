"""What is said to be on the disk is there, also where fsync stops at the drive's cache."""

import errno
import fcntl
import os
import stat
import threading
from contextlib import nullcontext

import numpy as np
import pytest

from mlxhog.base import durable, tensors
from tests.pairs import each_of

F_FULLFSYNC = 51


@pytest.fixture
def flushed(monkeypatch):
    """What was called, as on macOS."""
    calls = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", F_FULLFSYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, what: calls.append(f"fcntl {what}"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    return calls


def test_on_macos_every_part_of_a_checkpoint_goes_through_the_drives_cache(tmp_path, flushed):
    durable.sync(tmp_path)
    durable.write_synced(tmp_path / "a", b"x")
    durable.replace_file(tmp_path / "b", b"x")  # the file, and its directory
    tensors.write(tmp_path / "c", {"x": np.ones(3, np.float32)})
    assert flushed == [f"fcntl {F_FULLFSYNC}"] * 5


@each_of(
    ("number", "calls"), [(errno.ENOTSUP, ["fsync"]), (errno.EINVAL, ["fsync"]), (errno.EIO, [])]
)
def test_a_filesystem_without_it_gets_an_fsync_and_a_disk_that_fails_an_error(
    tmp_path, flushed, number, calls
):
    def refuse(fd, what):
        raise OSError(number, os.strerror(number))

    flushed.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "fcntl", refuse)
        with nullcontext() if calls else pytest.raises(OSError, match="Input/output"):
            durable.sync(tmp_path)
    assert flushed == calls


def test_content_is_on_the_disk_before_its_name_is_and_the_name_before_it_counts(
    tmp_path, flushed, monkeypatch
):
    replace = os.replace

    def fsync(descriptor):
        flushed.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def rename(source, target):
        flushed.append("name")
        replace(source, target)

    monkeypatch.delattr(fcntl, "F_FULLFSYNC")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    durable.replace_file(tmp_path / "run.json", b"x")
    with durable.new_directory(tmp_path / "step-1") as part:
        durable.write_synced(part / "state.json", b"x")
    for line in (b"x\n", b"y\n"):
        durable.append_lines(tmp_path / "journal", line, synced=True)
    assert flushed == [
        "file", "name", "folder",
        "file", "folder", "name", "folder",
        "file", "folder", "file",
    ]  # fmt: skip


def test_lines_of_an_append_that_fails_are_never_read(tmp_path):
    path = tmp_path / "lines"
    durable.append_lines(path, b"first\n")
    lines = []
    reader = threading.Thread(target=lambda: lines.append(durable.read_lines(path, 6, 1000)))
    with path.open("ab", buffering=0) as appending:
        fcntl.flock(appending, fcntl.LOCK_EX)
        appending.write(b"second\nth")
        reader.start()
        reader.join(0.2)  # it would be through by now
        appending.truncate(6)
    reader.join(60)
    assert lines == [b""]


def test_a_line_that_crosses_the_limit_is_read_to_its_end(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"first\nsecond\nthird\nto")
    reads = [durable.read_lines(path, begin, 8) for begin in (0, 13, 19)]
    assert reads == [b"first\nsecond\n", b"third\n", b""]
