"""A dead worker's lock is taken over, a live one's never."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mlxhog import _native
from tests.metal.shared import PROBE_NS, PROCESSES, TIMEOUT_S, shared, spawned
from tests.threads import begin, join, wait_until

HOLDER, WAITER, OTHER = 1, 2, 3


def hold(segment, i, holding, let_go):
    """A worker that holds lock `i` until it is told to let go, or dies."""
    locks = segment.locks(HOLDER)
    segment.workers["pid"][HOLDER - 1] = os.getpid()
    segment.workers["start_time"][HOLDER - 1] = _native.process_start_time(os.getpid())
    locks.acquire(i)
    holding.set()
    assert let_go.wait(TIMEOUT_S)
    locks.release(i)


@pytest.fixture
def segment():
    with shared(8 * _native.STRIPE) as result:
        yield result


@pytest.fixture
def holder(segment):
    """A spawned worker that holds lock 3, and the event that makes it let go."""
    holding, let_go = PROCESSES.Event(), PROCESSES.Event()
    with spawned(hold, [(segment, 3, holding, let_go)]) as (process,):
        assert holding.wait(TIMEOUT_S)
        yield process, let_go


@contextmanager
def waiting(segment, locks, i):
    """A worker waits for lock `i` of a live one, which lets go of it in the block."""

    def take_and_release(i):
        locks.acquire(i)
        locks.release(i)

    beat = segment.workers["heartbeat_ns"][WAITER - 1 : WAITER]
    beat[0] = 0  # it beats before and after it asks whether the owner lives
    thread = begin(take_and_release, [i])
    first = wait_until(lambda: int(beat[0]), TIMEOUT_S, "a worker that waits")
    wait_until(lambda: beat[0] > first + 3 * PROBE_NS, TIMEOUT_S, "its questions")
    assert thread[0].is_alive(), "a live owner's lock was taken"
    yield
    join(thread)


@pytest.mark.parametrize("state", ["a zombie", "gone", "marked dead"])
def test_a_dead_workers_lock_is_taken_over_and_counted(segment, holder, state):
    process, _ = holder
    locks = segment.locks(WAITER)
    os.kill(process.pid, signal.SIGKILL)
    if state != "a zombie":  # which nobody has waited for
        process.join(TIMEOUT_S)
    segment.workers["dead"][HOLDER - 1] = state == "marked dead"  # by a supervisor, if there is one
    locks.acquire(3)
    assert segment.words[3] == locks.word
    locks.release(3)
    assert locks.takeovers == segment.workers["takeovers"][WAITER - 1] == 1


FIRST_THREAD_ENDS = """
import ctypes, threading
threading.Thread(target=input).start()
print("begins", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_first_thread_has_ended_lives_while_another_may_write():
    """On Linux it is a zombie in the list of processes; a killed worker is one, for a moment."""
    words = [sys.executable, "-c", FIRST_THREAD_ENDS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        started = _native.process_start_time(process.pid)
        try:
            assert process.stdout.readline() == b"begins\n"
            status = Path(f"/proc/{process.pid}/stat")
            if status.exists():
                wait_until(lambda: ") Z " in status.read_text(), TIMEOUT_S, "the thread's end")
            assert not _native.process_is_gone(process.pid, started)
        finally:
            process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _native.process_is_gone(process.pid, started)


def test_a_stopped_worker_is_waited_for(segment, holder):
    process, let_go = holder
    locks = segment.locks(WAITER)
    os.kill(process.pid, signal.SIGSTOP)
    with waiting(segment, locks, 3):
        os.kill(process.pid, signal.SIGCONT)
        let_go.set()
    assert locks.takeovers == 0


def test_a_word_of_no_worker_and_a_pid_that_now_names_another_process_are_taken_over(segment):
    segment.words[1] = 999
    owner = segment.locks(HOLDER)
    owner.acquire(3)
    segment.workers["pid"][HOLDER - 1] = os.getpid()  # alive, but started at another time
    segment.workers["start_time"][HOLDER - 1] = _native.process_start_time(os.getpid()) + 1
    locks = segment.locks(WAITER)
    for i in (1, 3):
        locks.acquire(i)
    assert locks.takeovers == 2


def test_a_predecessor_in_a_reused_slot_is_dead_and_its_successor_is_not(segment):
    predecessor = segment.locks(HOLDER, generation=1)
    predecessor.acquire(2)
    successor = segment.locks(HOLDER, generation=2)  # the slot's entry now says 2
    successor.acquire(3)
    locks = segment.locks(WAITER)
    locks.acquire(2)
    assert locks.takeovers == 1
    with waiting(segment, locks, 3):
        successor.release(3)
    assert locks.takeovers == 1


def test_generations_wrap_at_16_bits(segment):
    locks = segment.locks(HOLDER, generation=0x1_0003)
    locks.acquire(0)
    assert segment.words[0] == HOLDER | 3 << 16
    with waiting(segment, segment.locks(WAITER), 0):  # the entry has the word's low 16 bits
        locks.release(0)


def test_a_sweep_frees_exactly_the_dead_slots_words(segment):
    for generation, i in ((1, 0), (1, 1), (2, 2)):
        segment.locks(HOLDER, generation).acquire(i)
    segment.locks(OTHER).acquire(4)
    assert _native.sweep_locks(segment.words, HOLDER, generation=1) == 2
    assert segment.words[2] == HOLDER | 2 << 16, "a live successor lost its lock"
    assert segment.words[4] == OTHER | 1 << 16, "another worker lost its lock"
    assert _native.sweep_locks(segment.words, HOLDER) == 1
    assert np.count_nonzero(segment.words) == 1


def test_only_the_owner_releases(segment):
    segment.locks(HOLDER).acquire(1)
    with pytest.raises(ValueError, match="does not hold"):
        segment.locks(WAITER).release(1)
    with pytest.raises(ValueError, match="wanted 1 to 4"):
        _native.Locks(segment.words, segment.table, 5, 1)
