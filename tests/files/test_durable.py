"""What is said to be on the disk is there, also where fsync stops at the drive's cache."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from mlxhog.files import durable, tensors

F_FULLFSYNC = 51


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called, as on macOS."""
    calls: list[str] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", F_FULLFSYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, what: calls.append(f"fcntl {what}"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    return calls


def test_on_macos_every_part_of_a_checkpoint_goes_through_the_drives_cache(
    tmp_path: Path, flushed: list[str]
) -> None:
    durable.sync(tmp_path)
    durable.write_synced(tmp_path / "a", b"x")
    durable.replace_file(tmp_path / "b", b"x")  # the file, and its directory
    tensors.write(tmp_path / "c", {"x": np.ones(3, np.float32)})
    assert flushed == [f"fcntl {F_FULLFSYNC}"] * 5


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOTTY, errno.EINVAL])
def test_a_filesystem_without_it_gets_an_fsync(
    tmp_path: Path, flushed: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: int, what: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    durable.sync(tmp_path)
    assert flushed == ["fsync"]


def test_a_disk_that_fails_is_an_error_not_an_fsync(
    tmp_path: Path, flushed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, what: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    with pytest.raises(OSError, match="Input/output"):
        durable.sync(tmp_path)
    assert flushed == []
