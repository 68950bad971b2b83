"""Workers are SIGKILLed at random while they write.

No lock stays taken, no increment of a finished step is lost, and of a dead worker's last step each
stripe or row is applied or not, but for the one it was writing. Moments of all workers are counted
by halves: where gradients are zero and both betas 1/2, a step halves them. A worker writes by one
thread, or by several, each of which may die in a stripe.
"""

import itertools
import os
from functools import partial

import numpy as np
import pytest

from mlxhog import _native
from mlxhog.base.processes import follow_parent
from tests.metal.shared import PROCESSES, TIMEOUT_S, shared
from tests.threads import wait_until

WORKERS, KILLS = 3, 30
WIDTH = 32  # of a row of a table
LOSSLESS = 0
UP = ("gradient", (), (-1.0, 1.0, 0.0, 0.0))
HALF = ("adam", (1.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1e-8), (1e-3, 1.0, 0.0, 0.0))


def add_for_ever(segment, slot, generation, form, threads=1):
    """One worker: add 1.0 to every float in one form, count the finished step, again."""
    follow_parent()  # it must not outlive a test that is killed
    locks = _native.Locks(segment.words, segment.table, slot, generation)
    flat, n = segment.floats, segment.floats.size
    ones, each = np.ones(n, np.float32), np.arange(n, dtype=np.int32)
    step = partial(_native.step, *UP, locks, LOSSLESS, flat, 0, ones, threads=threads)
    write = {
        "stripes": step,
        "rows": partial(step, rows=(each[: n // WIDTH], WIDTH, 0, n)),
        "elements": partial(_native.add_at, locks, LOSSLESS, flat, 0, n, n, None, each, ones),
    }[form]
    steps = segment.workers["steps"][slot - 1 : slot]
    for seed in itertools.count(os.getpid()):
        write(seed=seed)
        steps[0] += 1


def moments_of(segment):
    """Parameters, both moments, and the steps that each worker may take in all."""
    n = (segment.floats.size - WORKERS) // 3
    return np.split(segment.floats, [n, 2 * n, 3 * n])


def halve_as_often_as_allowed(segment, slot, generation, threads):
    """One worker: steps of AdamW with moments of all, as many as `moments_of` says it may take."""
    follow_parent()
    locks = _native.Locks(segment.words, segment.table, slot, generation)
    w, m, v, allowed = moments_of(segment)
    zeros = np.zeros(w.size, np.float32)
    steps = segment.workers["steps"][slot - 1 : slot]
    while True:
        if steps[0] >= allowed[slot - 1]:
            os.sched_yield()
            continue
        how = {"shared": True, "seed": os.getpid(), "threads": threads}
        _native.step(*HALF, locks, LOSSLESS, w, 0, zeros, [m, v], **how)
        steps[0] += 1


class Supervisor:
    """The part of a supervisor that deaths need: reap, mark dead, sweep, reuse the slot."""

    def __init__(self, segment, work):
        self.segment, self.workers, self.work = segment, segment.workers, work
        self.processes = {slot: self.spawn(slot) for slot in range(1, WORKERS + 1)}

    def spawn(self, slot):
        entry = self.workers[slot - 1 : slot]
        entry["pid"] = 0
        _native.sweep_locks(self.segment.words, slot)
        entry["generation"] += 1
        entry["dead"] = 0
        job = (self.segment, slot, int(entry["generation"][0]))
        process = PROCESSES.Process(target=self.work, args=job)
        process.start()
        entry["start_time"] = _native.process_start_time(process.pid)
        entry["pid"] = process.pid
        return process

    def kill(self, slot):
        process = self.processes[slot]
        process.kill()
        process.join(TIMEOUT_S)
        self.workers["dead"][slot - 1] = 1

    def wait_for_steps(self, slots, more):
        """Until each of `slots` has finished `more` further steps; a hang fails here."""
        goal = {slot: int(self.workers["steps"][slot - 1]) + more for slot in slots}

        def done():
            return all(self.workers["steps"][slot - 1] >= goal[slot] for slot in slots)

        wait_until(done, TIMEOUT_S, "steps of workers that may hang", every_s=0)

    def wait_for_a_lock(self, slot):
        """Until a word is the worker's, as some are during each of its steps."""
        words = self.segment.words  # the low half is the slot
        wait_until(lambda: slot in words & 0xFFFF, TIMEOUT_S, "a lock", every_s=0)

    def kill_at_random(self, kills, most, seed=0, allow=lambda slot, more: None, *, locked=False):
        """Kill a worker after 1 to `most` steps, and start another, `kills` times; then end all.

        `allow` is told how many further steps a worker may take. With `locked` every second victim
        has just been seen with a lock.
        """
        rng = np.random.default_rng(seed)
        try:
            for number in range(kills):
                victim = int(rng.integers(1, WORKERS + 1))
                survivors = [slot for slot in self.processes if slot != victim]
                allow(victim, 2 * most)
                self.wait_for_steps([victim], int(rng.integers(1, most)))
                if locked and number % 2:
                    self.wait_for_a_lock(victim)
                self.kill(victim)  # in its next step, or just behind it
                for slot in survivors:
                    allow(slot, 2 + most)
                self.wait_for_steps(survivors, 2)  # they pass every stripe, also the victim's
                self.processes[victim] = self.spawn(victim)
        finally:
            for slot in self.processes:
                self.kill(slot)
        for slot in self.processes:
            _native.sweep_locks(self.segment.words, slot)
        assert not self.segment.words.any(), "a lock word is stuck"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "threads", "stripes", "steps"),
    [
        ("stripes", 1, 64, 400),
        ("stripes", 2, 1024, 25),
        ("rows", 1, 64, 400),
        ("elements", 1, 64, 100),
    ],
)
def test_random_kills_leave_no_lock_taken_and_lose_no_finished_step(form, threads, stripes, steps):
    """By two threads a step has more stripes, so that locks, not wake-ups, take its time."""
    n = stripes * _native.STRIPE
    with shared(n, n_words=n // WIDTH, n_workers=WORKERS) as segment:
        Supervisor(segment, partial(add_for_ever, form=form, threads=threads)).kill_at_random(
            KILLS, steps, locked=True
        )
        takeovers = int(segment.workers["takeovers"].sum())
        print(f"{KILLS} kills of 1 of {WORKERS} workers: {takeovers} takeovers")
        assert takeovers > 0, "no worker died while it held a lock; the test shows nothing"
        finished, deaths = int(segment.workers["steps"].sum()), KILLS + WORKERS
        assert takeovers <= deaths * threads
        assert segment.floats.min() >= finished, "an increment of a finished step is lost"
        assert segment.floats.max() <= finished + deaths, "more than the dead workers' last steps"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_random_kills_lose_no_moment_of_a_finished_step(threads):
    died = any(moments_survive(threads, seed) for seed in range(10))
    assert died, "no worker died amid a step"


def moments_survive(threads, seed):
    """Kill workers and check the moments; whether one died amid a step."""
    kills, begin = 10, 110  # 2^110 is halved 200 times at most
    with shared(3 * (1 << 20) + WORKERS, n_workers=WORKERS) as segment:
        w, m, v, allowed = moments_of(segment)
        m[:], v[:] = 2.0**begin, 2.0**begin
        took = segment.workers["steps"]

        def allow(slot, more):
            allowed[slot - 1] = took[slot - 1] + more

        work = partial(halve_as_often_as_allowed, threads=threads)
        Supervisor(segment, work).kill_at_random(kills, 4, seed, allow)
        assert np.isfinite(w).all()
        assert w.any(), "no step moved a parameter"
        finished = int(took.sum())
        for moment in (m, v):
            halvings = begin - np.log2(moment.astype(np.float64))
            np.testing.assert_array_equal(halvings, np.rint(halvings))
            assert halvings.min() >= finished, "a moment has lost a finished step"
            assert halvings.max() <= finished + kills + WORKERS
        return bool(segment.workers["takeovers"].any())
