"""Limits of the machine, of control groups, of /dev/shm: the tightest one holds, and is named."""

import errno
import os
import re
import resource
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from mlxhog.base import machine, resources
from mlxhog.errors import message_of
from tests.pairs import each_of

GIB = 1 << 30
NO_LIMIT = 9223372036854771712  # as version 1 writes it


@pytest.fixture
def groups(monkeypatch, tmp_path):
    """Put this process into groups: trees of files, and the lines that name them."""
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=50 * GIB)
    )
    monkeypatch.setattr(resources, "_PROC", tmp_path)
    monkeypatch.setattr(resources, "_SHM", tmp_path / "no shm")

    def make(files, *trees):
        home = tmp_path / str(len(list(tmp_path.iterdir())))  # each case has one of its own
        home.mkdir()
        monkeypatch.setattr(resources, "_PROC", home)
        lines, mounts = [], ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw"]
        for controllers, path, root in trees:
            point = str(home / f"tree {controllers or 2}").replace(" ", "\\040")
            kind = f"cgroup cgroup rw,{controllers}" if controllers else "cgroup2 cgroup rw"
            lines.append(f"4:{controllers}:{path}")
            mounts.append(f"31 23 0:28 {root} {point} rw,relatime - {kind}")
        (home / "cgroup").write_text("\n".join([*lines, ""]))
        (home / "mountinfo").write_text("\n".join([*mounts, ""]))
        for name, text in files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(f"{text}\n")

    return make


V2, V1 = ("", "/a/b", "/"), ("memory", "/a/b", "/")
CACHE_2 = "anon 9\nactive_file 300\ninactive_file 500\nfile_dirty 20\nfile_writeback 30\nshmem 40"
CACHE_1 = (
    "active_file 1\ninactive_file 1\ntotal_active_file 300\ntotal_inactive_file 500\ntotal_dirty 50"
)


@each_of(
    ("files", "tree", "available", "cause"),
    [
        # A container whose limit is full of page cache: clean pages are available.
        ({"tree 2/a/b/memory.max": 1000, "tree 2/a/b/memory.current": 990,
          "tree 2/a/b/memory.stat": CACHE_2}, V2, 760, "(memory.max)"),
        ({"tree memory/a/b/memory.limit_in_bytes": 1000,
          "tree memory/a/b/memory.usage_in_bytes": 990,
          "tree memory/a/b/memory.stat": CACHE_1}, V1, 760, "(memory.limit_in_bytes)"),
        # Of a group above, and of the part of the tree that a container sees.
        ({"tree 2/a/b/memory.max": "max", "tree 2/a/memory.max": 1000,
          "tree 2/a/memory.current": 400}, V2, 600, "tree 2/a has 600 left of its 1,000"),
        ({"tree 2/memory.max": 1000, "tree 2/memory.current": 400}, ("", "/", "/"), 600, "tree 2"),
        ({"tree memory/memory.limit_in_bytes": 700}, ("memory", "/d/x", "/d/x"), 700, "tree"),
        ({"tree memory/y/memory.limit_in_bytes": 700}, ("memory", "/d/x/y", "/d/x"), 700, "tree"),
        ({"tree 2/memory.max": 700}, ("", "/../../x", "/"), 700, "tree 2 has"),
        # Above memory.high a group is slowed down as if it had no memory.
        ({"tree 2/a/b/memory.max": 1000, "tree 2/a/b/memory.high": 800,
          "tree 2/a/b/memory.current": 100}, V2, 700, "800 (memory.high)"),
        # More in use than a limit that was lowered.
        ({"tree 2/a/b/memory.max": 100, "tree 2/a/b/memory.current": 900}, V2, 0, "memory.max"),
        # No limit.
        ({}, V2, 50 * GIB, "this machine has"),
        ({"tree 2/a/b/memory.max": "max", "tree 2/a/b/memory.current": 5}, V2, 50 * GIB, "machine"),
        ({"tree memory/a/b/memory.limit_in_bytes": NO_LIMIT,
          "tree memory/a/b/memory.usage_in_bytes": 5}, V1, 50 * GIB, "this machine has"),
        ({"tree memory/a/b/memory.limit_in_bytes": 5}, ("cpu", "/a/b", "/"), 50 * GIB, "machine"),
        # Unreadable, malformed.
        ({"tree 2/a/b/memory.max/x": ""}, V2, 50 * GIB, "this machine has"),
        ({"tree 2/a/b/memory.max": "much"}, V2, 50 * GIB, "this machine has"),
        ({"tree 2/a/b/memory.max": ""}, V2, 50 * GIB, "this machine has"),
        ({"tree 2/a/b/memory.max": 1000, "tree 2/a/b/memory.current": "?",
          "tree 2/a/b/memory.stat": "active_file\nfile_dirty many\n\n1"}, V2, 1000, "memory.max"),
    ],
)  # fmt: skip
def test_memory_is_what_the_tightest_group_has_left_without_its_clean_page_cache(
    groups, files, tree, available, cause
):
    groups(files, tree)
    limit = resources.available_memory()
    assert limit.n_bytes == available
    assert cause in limit.cause
    assert resources.available_shared_memory() == limit
    assert ("docker run --memory" in limit.way_out) == (available < GIB)


def test_a_machine_with_trees_of_both_versions_has_the_limits_of_both(groups):
    files = {
        "tree 2/a/b/memory.max": 900,
        "tree memory/a/b/memory.limit_in_bytes": 1200,
        "tree memory/a/memory.limit_in_bytes": 800,
    }
    groups(files, V1, V2)
    assert resources.available_memory().n_bytes == 800
    assert machine.here().memory_bytes == 800
    assert "memory.limit_in_bytes of control group" in machine.here().memory_limit


def test_without_control_groups_the_machine_is_the_limit(groups, tmp_path):
    assert resources.available_memory().n_bytes == 50 * GIB  # neither file exists
    for name in ("cgroup", "mountinfo"):
        (tmp_path / name).write_bytes(b"x\n\xff 1 2 - cgroup2\n0::/a\n")
    assert resources.available_memory().n_bytes == 50 * GIB


def test_a_small_shm_is_named_with_its_way_out(groups, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_SHM", tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=16, f_frsize=4096))
    limit = resources.available_shared_memory()
    assert (limit.n_bytes, limit.cause) == (65_536, f"{tmp_path} has 65,536 free")
    assert "--shm-size" in limit.way_out


@each_of(
    ("files", "tree", "cores"),
    [
        ({"tree 2/a/b/cpu.max": "50000 100000"}, V2, 1),
        ({"tree 2/a/b/cpu.max": "200000 100000"}, V2, 2),
        ({"tree 2/a/b/cpu.max": "250000 100000"}, V2, 3),
        ({"tree 2/a/b/cpu.max": "max 100000", "tree 2/a/cpu.max": "400000 100000"}, V2, 4),
        ({"tree 2/a/b/cpu.max": "max 100000"}, V2, 64),
        ({"tree 2/a/b/cpu.max": "9000000 100000"}, V2, 64),
        ({"tree 2/a/b/cpu.max": "100 0"}, V2, 64),
        ({"tree 2/a/b/cpu.max": "100"}, V2, 64),
        ({"tree cpu,cpuacct/a/cpu.cfs_quota_us": 150_000,
          "tree cpu,cpuacct/a/cpu.cfs_period_us": 50_000}, ("cpu,cpuacct", "/a/b", "/"), 3),
        ({"tree cpu/a/b/cpu.cfs_quota_us": -1,
          "tree cpu/a/b/cpu.cfs_period_us": 100_000}, ("cpu", "/a/b", "/"), 64),
        ({"tree cpu/a/b/cpu.cfs_quota_us": 7}, ("cpu", "/a/b", "/"), 64),
    ],
)  # fmt: skip
def test_the_cores_fit_the_quota_of_processor_time(groups, monkeypatch, files, tree, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    groups(files, tree)
    assert resources.usable_cores() == cores


@each_of(
    ("files", "tree"),
    [
        ({"tree 2/a/b/memory.events": "low 0\noom 3\noom_kill 2",
          "tree 2/a/memory.events": "oom_kill 9"}, V2),
        ({"tree memory/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2"}, V1),
    ],
)  # fmt: skip
def test_kills_for_lack_of_memory_are_those_in_this_process_s_group(groups, files, tree):
    groups(files, tree)
    assert resources.oom_kills() == 2
    groups({}, ("pids", "/a/b", "/"))
    assert resources.oom_kills() == 0


def test_a_lack_of_memory_has_words_whoever_met_it_and_another_error_has_none():
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 57)
    for error, words in (
        (of_numpy.value, "used up: Unable to allocate 1"),
        (MemoryError(), "used up: this .* available"),
        (MemoryError("std::bad_alloc"), "used up: std::bad_alloc"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: 8"), "used up: .*8"),
        (RuntimeError("[malloc] Unable to allocate 8 bytes."), "used up: .malloc. Unable"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "used up: .*allocate"),
    ):
        assert re.match(f"the memory is {words}", resources.shortage(error)), error
        assert resources.says_out_of_memory(resources.shortage(error))
    for other in (RuntimeError("shapes differ"), ValueError("MemoryError"), KeyError("x")):
        assert resources.shortage(other) == ""
    assert message_of(MemoryError()) == "too little memory"


def test_a_limit_of_the_address_space_is_named(groups, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (1 << 42, 1 << 42))
    monkeypatch.setattr(
        psutil,
        "Process",
        lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=(1 << 42) - 7)),
    )
    limit = resources.available_memory()
    if sys.platform != "darwin":
        assert (limit.n_bytes, limit.way_out) == (7, "raise that limit")
        assert limit.cause == f"this process may have {1 << 42:,} (ulimit -v), of which 7 are left"
