"""Content and names are on the disk, also where fsync stops at the drive's cache."""

import errno
import fcntl
import os
import stat
import threading
from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest

from mlxhog.base import durable, tensors
from tests.threads import join

F_FULLFSYNC = 51


@pytest.fixture
def flushed(monkeypatch):
    """The calls, as on macOS."""
    calls = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", F_FULLFSYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, what: calls.append(f"fcntl {what}"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    return calls


def test_on_macos_a_checkpoint_passes_the_drives_cache_if_it_can(tmp_path, flushed, monkeypatch):
    durable.sync(tmp_path)
    durable.write_synced(tmp_path / "a", b"x")
    durable.replace_file(tmp_path / "b", b"x")  # the file, and its directory
    tensors.write(tmp_path / "c", {"x": np.ones(3, np.float32)})
    assert flushed == [f"fcntl {F_FULLFSYNC}"] * 5
    for number, calls in (
        (errno.ENOTSUP, ["fsync"]),
        (errno.EINVAL, ["fsync"]),
        (errno.EIO, []),  # the disk fails
    ):
        flushed.clear()
        refusal = OSError(number, os.strerror(number))
        monkeypatch.setattr(fcntl, "fcntl", Mock(side_effect=refusal))
        with nullcontext() if calls else pytest.raises(OSError, match="Input/output"):
            durable.sync(tmp_path)
        assert flushed == calls


def test_of_two_that_replace_a_file_at_once_neither_takes_the_others_part(tmp_path, monkeypatch):
    path, replace = tmp_path / "run.json", os.replace

    def beside(source, target):
        monkeypatch.setattr(os, "replace", replace)
        durable.replace_file(path, b"second")  # of a process of the same id, in another container
        replace(source, target)

    monkeypatch.setattr(os, "replace", beside)
    durable.replace_file(path, b"first")
    assert path.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["run.json"]


def test_a_new_directory_that_another_process_is_filling_stays(tmp_path):
    with durable.new_directory(tmp_path / "step-1") as part:
        (part / "state.json").write_bytes(b"first")
        with pytest.raises(FileExistsError), durable.new_directory(tmp_path / "step-1"):
            pass
    assert (tmp_path / "step-1" / "state.json").read_bytes() == b"first"


def test_content_is_on_disk_before_its_name_and_that_before_use(tmp_path, flushed, monkeypatch):
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


def test_lines_of_an_append_that_fails_are_never_read_and_a_long_one_to_its_end(tmp_path):
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
    join([reader])
    assert lines == [b""]
    path.write_bytes(b"first\nsecond\nthird\nto")
    reads = [durable.read_lines(path, begin, 8) for begin in (0, 13, 19)]
    assert reads == [b"first\nsecond\n", b"third\n", b""]


@pytest.mark.parametrize("name", ["a", "a[1]*"])
def test_a_directory_that_a_killed_process_had_moved_away_is_back(tmp_path, name):
    for end in ("old", "part"):
        (tmp_path / f"{name}.999999999.{end}").mkdir()
        (tmp_path / f"{name}.999999999.{end}" / "model").write_text(end)
    (tmp_path / f"{name}.{os.getppid()}.part").mkdir()  # of a process that runs
    durable.clear_remains(tmp_path / name)
    assert sorted(one.name for one in tmp_path.iterdir()) == [name, f"{name}.{os.getppid()}.part"]
    assert (tmp_path / name / "model").read_text() == "old"
