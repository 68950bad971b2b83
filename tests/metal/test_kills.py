"""Workers are SIGKILLed at random while they write.

No lock stays taken, no increment of a finished step is lost, and of a dead worker's last step each
stripe is applied or not, but for the one it was writing.
"""

from __future__ import annotations

import os
import time
from multiprocessing.process import BaseProcess

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.machine.processes import follow_parent
from tests.metal.shared import PROCESSES, TIMEOUT_S, Shared, pid_of, shared

pytestmark = pytest.mark.slow

WORKERS, KILLS = 3, 50
STRIPES = 64
LOSSLESS = 0


def add_for_ever(segment: Shared, slot: int, generation: int) -> None:
    """One worker: add 1.0 to every float, count the finished step, again."""
    follow_parent()  # it must not outlive a test that is killed
    locks = _native.Locks(segment.words, segment.table, slot, generation)
    ones = np.ones(segment.floats.size, np.float32)
    steps = segment.workers["steps"][slot - 1 : slot]
    seed = os.getpid()
    while True:
        _native.add_dense(locks, LOSSLESS, segment.floats, 0, ones, seed)
        steps[0] += 1
        seed += 1


class Supervisor:
    """The part of a supervisor that deaths need: reap, mark dead, sweep, reuse the slot."""

    def __init__(self, segment: Shared) -> None:
        self.segment, self.workers = segment, segment.workers
        self.processes = {slot: self.spawn(slot) for slot in range(1, WORKERS + 1)}

    def spawn(self, slot: int) -> BaseProcess:
        entry = self.workers[slot - 1 : slot]
        entry["pid"] = 0
        _native.sweep_locks(self.segment.words, slot)
        entry["generation"] += 1
        entry["dead"] = 0
        job = (self.segment, slot, int(entry["generation"][0]))
        process = PROCESSES.Process(target=add_for_ever, args=job)
        process.start()
        entry["start_time"] = _native.process_start_time(pid_of(process))
        entry["pid"] = pid_of(process)
        return process

    def kill(self, slot: int) -> None:
        process = self.processes[slot]
        process.kill()
        process.join(TIMEOUT_S)
        self.workers["dead"][slot - 1] = 1

    def wait_for_steps(self, slots: list[int], more: int) -> None:
        """Until each of `slots` has finished `more` further steps; a hang fails here."""
        goal = {slot: int(self.workers["steps"][slot - 1]) + more for slot in slots}
        deadline = time.monotonic() + TIMEOUT_S
        while any(self.workers["steps"][slot - 1] < goal[slot] for slot in slots):
            assert time.monotonic() < deadline, f"workers hang; lock words {self.segment.words}"
            os.sched_yield()


def test_random_kills_leave_no_lock_taken_and_lose_no_finished_step() -> None:
    rng = np.random.default_rng(0)
    with shared(STRIPES * _native.STRIPE, n_workers=WORKERS) as segment:
        supervisor = Supervisor(segment)
        everyone = list(supervisor.processes)
        try:
            for _ in range(KILLS):
                victim = int(rng.integers(1, WORKERS + 1))
                survivors = [slot for slot in everyone if slot != victim]
                supervisor.wait_for_steps([victim], int(rng.integers(1, 400)))
                supervisor.kill(victim)
                supervisor.wait_for_steps(survivors, 2)  # they pass every stripe, also the victim's
                supervisor.processes[victim] = supervisor.spawn(victim)
        finally:
            for slot in everyone:
                supervisor.kill(slot)
        for slot in everyone:
            _native.sweep_locks(segment.words, slot)
        takeovers = int(segment.workers["takeovers"].sum())
        print(f"{KILLS} kills of 1 of {WORKERS} workers: {takeovers} takeovers")
        assert not segment.words.any(), "a lock word is stuck"
        assert takeovers > 0, "no worker died while it held a lock; the test shows nothing"
        assert takeovers <= KILLS
        finished = int(segment.workers["steps"].sum())
        deaths = KILLS + WORKERS
        assert segment.floats.min() >= finished, "an increment of a finished step is lost"
        assert segment.floats.max() <= finished + deaths, "more than the dead workers' last steps"
