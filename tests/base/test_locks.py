"""A folder has one holder: among threads, processes, users and machines, dead ones left out."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxhog.base import darwin, durable, locks, plain_json, reading
from mlxhog.base.locks import HEARTBEAT_TIMEOUT_S, RECORD, Holder
from mlxhog.errors import EnvironmentLacks, RunError
from tests.odd_disk import nfs_locks, odd_disk
from tests.pairs import each_of
from tests.threads import in_threads, wait_until

HERE = Holder(os.getppid(), locks.host(), locks.boot_id())
THERE = Holder(7, "another", "0-1-2")


def leave(folder, holder, age_s=0.0):
    """Leave a holder's record of some age."""
    path = folder / RECORD
    path.write_bytes(plain_json.dumps(asdict(holder)))
    (folder / "lock").touch()
    os.utime(path, (time.time() - age_s,) * 2)


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    return ended.pid


def refused(folder, words):
    with pytest.raises(RunError, match=words), locks.lock(folder, RunError):
        pass


@each_of("number", [None, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_of_many_at_once_one_holds_a_folder_and_no_line_of_theirs_is_lost(tmp_path, number):
    held = []

    def work(k):
        durable.append_lines(tmp_path / "lines", b"%d\n" % k)
        try:
            with locks.lock(tmp_path, RunError):
                held.append(k)
                wait_until(lambda: len(refusals) == 7)
        except RunError as error:
            refusals.append(str(error))

    refusals = []
    with odd_disk(tmp_path if number else tmp_path / "none", "locks", number or errno.ENOLCK):
        in_threads(work, range(8))
    assert len(held) == 1
    assert all(f"in use by process {os.getpid()}; wait" in text for text in refusals)
    assert sorted((tmp_path / "lines").read_bytes().split()) == [b"%d" % k for k in range(8)]
    assert not (tmp_path / RECORD).exists()


def test_a_folder_is_another_hosts_until_its_sign_of_life_is_old(tmp_path, monkeypatch):
    leave(tmp_path, THERE)
    assert locks.holder(tmp_path) == THERE
    refused(tmp_path, "by process 7 on another; .*stop it there, try again in 60 s if another has")
    leave(tmp_path, THERE, age_s=HEARTBEAT_TIMEOUT_S + 1)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the disk's clock counts
    assert locks.holder(tmp_path) is None
    with locks.lock(tmp_path, RunError):
        assert locks.holder(tmp_path).pid == os.getpid()


def test_a_lock_of_this_host_is_free_after_a_death_and_after_a_restart(tmp_path, monkeypatch):
    leave(tmp_path, HERE)  # it lives, and has lost the kernel's lock
    assert not locks.is_locked(tmp_path)
    leave(tmp_path, Holder(HERE.pid, HERE.host, "before"))
    assert not locks.is_locked(tmp_path)
    with locks.lock(tmp_path, RunError):
        pass
    monkeypatch.setattr(locks, "host", lambda: "localhost")  # no name of one machine
    leave(tmp_path, Holder(7, "localhost", "another's"))
    assert locks.is_locked(tmp_path)


def test_a_mac_knows_its_boots_apart(monkeypatch):
    names = {"kern.bootsessionuuid": b"8D7A\0", "kern.boottime": b"\1\2"}
    monkeypatch.setattr(darwin, "sysctl", names.get)
    assert locks.boot_id.__wrapped__() == "8D7A"
    del names["kern.bootsessionuuid"]
    monkeypatch.setattr(locks, "BOOT_FILE", Path("/does/not/exist"))
    assert locks.boot_id.__wrapped__() == "0102"


def test_a_mac_has_an_id_whatever_its_name(monkeypatch):
    def gethostuuid(uuid, wait):
        uuid[:] = bytes(range(16))
        return 0

    assert darwin.host_uuid() == ""
    monkeypatch.setattr(darwin, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(darwin, "_system", lambda: SimpleNamespace(gethostuuid=gethostuuid))
    assert darwin.host_uuid() == bytes(range(16)).hex()


def test_a_mac_is_itself_in_another_network(tmp_path, monkeypatch):
    leave(tmp_path, renamed := Holder(HERE.pid, "Annas-MacBook.home", HERE.boot))
    assert locks.is_locked(tmp_path)  # as a container's, which shares the boot of its machine
    assert renamed.elsewhere == "Annas-MacBook.home"
    monkeypatch.setattr(locks, "sys", SimpleNamespace(platform="darwin"))
    assert not locks.is_locked(tmp_path)
    assert renamed.elsewhere == ""
    with locks.lock(tmp_path, RunError):
        pass


def test_without_locks_a_process_of_another_user_holds_a_folder_while_it_lives(tmp_path):
    with odd_disk(tmp_path, "locks", errno.ENOLCK):
        leave(tmp_path, HERE)
        refused(tmp_path, f"in use by process {HERE.pid}; wait")
        leave(tmp_path, HERE, age_s=HEARTBEAT_TIMEOUT_S + 1)  # a new process has its id
        assert not locks.is_locked(tmp_path)
        leave(tmp_path, Holder(dead_pid(), HERE.host, HERE.boot))
        assert not locks.is_locked(tmp_path)


@each_of("content", [b"", b"[]", b"{", b'{"pid": "x", "host": 3}', b'{"pid": 1%s}' % (b"0" * 30)])
def test_a_damaged_record_is_another_hosts_until_it_is_old(tmp_path, content):
    leave(tmp_path, THERE)
    (tmp_path / RECORD).write_bytes(content)
    refused(tmp_path, "in use by process")
    os.utime(tmp_path / RECORD, (1, 1))
    assert not locks.is_locked(tmp_path)


def test_a_holder_gives_signs_of_life_and_knows_when_another_machine_has_taken_its_folder(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    with locks.lock(tmp_path, RunError):
        os.utime(tmp_path / RECORD, (1, 1))
        wait_until(lambda: (tmp_path / RECORD).stat().st_mtime > 1)
        locks.require_held(tmp_path)
        (tmp_path / RECORD).unlink()
        locks.require_held(tmp_path)  # somebody has tidied up
        leave(tmp_path, THERE)
        with pytest.raises(EnvironmentLacks, match="now belongs to process 7 on another"):
            locks.require_held(tmp_path)
    assert locks.holder(tmp_path) == THERE


def test_a_holder_that_slept_while_another_took_its_folder_and_ended_writes_no_more(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    with locks.lock(tmp_path, RunError):
        (tmp_path / RECORD).unlink()
        locks.require_held(tmp_path)
        monkeypatch.setattr(locks, "HEARTBEAT_TIMEOUT_S", -1)  # each beat is too late
        with pytest.raises(EnvironmentLacks, match="now belongs to nobody"):
            wait_until(lambda: locks.require_held(tmp_path))
    with locks.lock(tmp_path, RunError):
        locks.require_held(tmp_path)


def test_a_folder_that_was_removed_or_renamed_meanwhile_is_locked_again(tmp_path):
    folder, moved = tmp_path / "run", tmp_path / "moved"
    folder.mkdir()
    with locks.lock(folder, RunError):
        folder.rename(moved)
        assert locks.is_locked(moved)
        folder.mkdir()
        with locks.lock(folder, RunError):
            locks.require_held(folder)
    assert locks.holder(folder) is locks.holder(moved) is None


def test_a_link_in_place_of_a_lock_makes_no_file_elsewhere(tmp_path):
    for name in ("lock", RECORD):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).symlink_to(tmp_path / "victim")
        with pytest.raises((RunError, EnvironmentLacks)), locks.lock(folder, RunError):
            pass
        assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_in_place_of_a_lock_is_named_with_the_way_out(tmp_path, make):
    make(tmp_path / "lock")
    with pytest.raises(RunError, match=r"its file lock cannot be opened \(.*remove the file"):
        with locks.lock(tmp_path, RunError):
            pass


def test_a_file_is_in_use_while_a_process_has_its_lock_on_nfs_and_where_it_is_read_only(
    tmp_path, monkeypatch
):
    path = tmp_path / "train.bin"
    path.write_bytes(b"x")
    regular = reading.regular

    def of_another_user(path, flags):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return regular(path, flags)

    def is_known():
        with path.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            is_seen = locks.is_in_use(path)
        return is_seen and not locks.is_in_use(path)

    assert is_known()
    with nfs_locks():
        assert is_known()
    monkeypatch.setattr(reading, "regular", of_another_user)
    assert is_known()
    assert path.read_bytes() == b"x"
    assert not locks.is_in_use(tmp_path / "missing")
