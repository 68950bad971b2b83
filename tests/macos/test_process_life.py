"""process_life.cpp and pool.cpp as macOS compiles them; its libproc answers truthfully."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from mlxhog.arena.workers import ENTRY_BYTES, Entry
from tests.macos.simulation import HERE, ROOT, build, libsystem, linux_only
from tests.metal.shared import PROBE_NS
from tests.threads import begin, join, wait_until

pytestmark = [linux_only, pytest.mark.slow]

UPDATES = ROOT / "metal" / "native" / "updates"
OPS = ROOT / "metal" / "native" / "ops"
USER_INITIATED = 0x19


@pytest.fixture(scope="module")
def life():
    """The macOS branch of process_life.cpp, and the locks, as C functions."""
    sources = [HERE / "life.cpp", UPDATES / "process_life.cpp", UPDATES / "locks.cpp"]
    options = ["-D__APPLE__", f"-isystem{HERE / 'include'}"]
    result = ctypes.CDLL(str(build("life", *options, *sources, link=(str(libsystem()),))))
    result.start_time.argtypes = (ctypes.c_int64,)
    result.start_time.restype = result.now_ns.restype = result.take.restype = ctypes.c_uint64
    result.gone.argtypes = (ctypes.c_int64, ctypes.c_uint64)
    result.gone.restype = ctypes.c_bool
    result.take.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32)
    return result


@contextmanager
def child():
    """A living process; afterwards a reaped one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def become_zombie(process):
    """Kill a child and wait, without reaping it, until it is a zombie."""
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_process_is_gone_as_a_zombie_when_reaped_and_when_its_pid_is_anothers(life):
    with child() as process:
        pid, started = process.pid, life.start_time(process.pid)
        assert started > life.start_time(os.getpid()) > 1_600_000_000_000_000  # microseconds
        assert life.start_time(pid) == started
        assert not life.gone(pid, started)
        assert life.gone(pid, started + 1)  # another process has the pid
        assert not life.gone(pid, 0)  # unknown is no evidence
        become_zombie(process)
        os.kill(pid, 0)  # raises if there were no such process
        assert life.gone(pid, started)
    assert life.gone(pid, started)
    for no_process in (pid, 0, -1):
        assert life.start_time(no_process) == 0
    assert not life.gone(0, 5)
    assert not life.gone(-1, 5)
    before = time.monotonic_ns()
    assert before <= life.now_ns() <= time.monotonic_ns(), "the clock is Python's"


def test_the_lock_of_a_killed_worker_that_nobody_reaped_is_taken_over(life):
    words, table = np.zeros(1, np.uint32), np.zeros((2, ENTRY_BYTES), np.uint8)
    entries = [Entry(k + 1, table[k]) for k in (0, 1)]
    with child() as process:
        for entry in entries:
            entry.pid, entry.start_time = process.pid, life.start_time(process.pid)
        words[0] = 1  # held by slot 1, generation 0
        taken, at = [], (words.ctypes.data, table.ctypes.data, 2)
        waiters = begin(lambda slot: taken.append(life.take(*at, slot)), [2])
        first = wait_until(lambda: entries[1].heartbeat_ns, what="the second worker to wait")
        wait_until(lambda: entries[1].heartbeat_ns > first + 3 * PROBE_NS, what="its questions")
        assert not taken  # its owner lives
        become_zombie(process)
        join(waiters)
        assert taken == [1]
        assert words[0] == 2


def test_helpers_of_the_pool_have_the_class_of_their_caller():
    flags = ["-D__APPLE__", f"-isystem{HERE / 'include'}", f"-I{OPS}"]
    pool = ctypes.CDLL(str(build("pool", *flags, HERE / "pool.cpp", OPS / "pool.cpp")))
    classes = (ctypes.c_uint * 3)()
    pool.classes(USER_INITIATED, 3, classes)
    assert list(classes) == [USER_INITIATED] * 3
