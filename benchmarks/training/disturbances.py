"""What happens to workers while they train: signals, and another program on their core."""

import heapq
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from mlxhog.progress import Phase

AFTER_TRAINING = (Phase.FINISHING, Phase.EVALUATING, Phase.SCORING)


@dataclass(frozen=True)
class Disturbance:
    """In what workers are not equally fast.

    Attributes:
        slow: the option of `TrainConfig`, of the seconds of a run and the number of workers.
        disturb: disturbs workers with these pids until an event, in a run of n seconds.
    """

    slow: Callable[[float, int], str] | None = None
    disturb: Callable[[list[int], threading.Event, float], None] | None = None

    def option(self, seconds, workers):
        """What `--inject-stragglers` gets; None where nothing is slow by itself."""
        return None if self.slow is None else self.slow(seconds, workers)


def stop_now_and_then(pids, end, seconds, *, period_s, share, begin=0.0):
    """Stop the last worker for a share of each period, from a share of the run on."""
    end.wait(begin * seconds)
    with suppress(ProcessLookupError):
        while not end.is_set():
            os.kill(pids[-1], signal.SIGSTOP)
            end.wait(share * period_s)
            os.kill(pids[-1], signal.SIGCONT)
            end.wait((1 - share) * period_s)


def pause_at_random(pids, end, seconds, *, every_s, for_s):
    """Stop each worker for a time, at random moments: the same ones in every run."""
    draws = [random.Random(k) for k in range(len(pids))]
    stops = [(draw.expovariate(1 / every_s), k, False) for k, draw in enumerate(draws)]
    began = time.monotonic()
    heapq.heapify(stops)
    with suppress(ProcessLookupError):
        while not end.is_set():
            at_s, k, is_stopped = stops[0]
            if end.wait(max(0.0, began + at_s - time.monotonic())):
                break
            os.kill(pids[k], signal.SIGCONT if is_stopped else signal.SIGSTOP)
            next_s = draws[k].expovariate(1 / every_s) if is_stopped else for_s
            heapq.heapreplace(stops, (at_s + next_s, k, not is_stopped))
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill_last(pids, end, seconds, *, after):
    """Kill the last worker once, after a share of the run; the run starts another in its slot."""
    if not end.wait(after * seconds):
        with suppress(ProcessLookupError):
            os.kill(pids[-1], signal.SIGKILL)


def compute_beside(pids, end, seconds):
    """Another program, bound to one core where the system can bind it."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(program.pid, {min(os.sched_getaffinity(0))})
        end.wait()
    finally:
        program.kill()
        program.wait()


def asleep(times):
    """All workers take so many times as long for one gradient in ten, at random."""
    return lambda _, n: ",".join(f"{k}=random:0.1:{times}" for k in range(n))


def one(times):
    """The second worker is so many times slower."""
    return lambda *_: f"1={times}"


EQUAL, SLEEPS = "equal", "random sleeps"
SLOWER = {f"one {times}x slower": Disturbance(one(times)) for times in (2, 3, 4, 6)}
DISTURBANCES = {
    EQUAL: Disturbance(),
    **SLOWER,
    "one becomes 4x slower": Disturbance(
        disturb=partial(stop_now_and_then, period_s=0.04, share=0.75, begin=0.5)
    ),
    SLEEPS: Disturbance(asleep(6)),
    "pauses": Disturbance(disturb=partial(pause_at_random, every_s=0.5, for_s=0.25)),
    "random sleeps, 3x": Disturbance(asleep(3)),
    "another program": Disturbance(disturb=compute_beside),
    "one joins late": Disturbance(lambda seconds, _: f"1=late:{seconds / 3:g}"),
    "one stopped half of the time": Disturbance(
        disturb=partial(stop_now_and_then, period_s=1.0, share=0.5)
    ),
    "one dies": Disturbance(disturb=partial(kill_last, after=1 / 3)),
}


class Disturber:
    """An observer of a run: disturbs its workers from their first step to their last."""

    def __init__(self, disturb, seconds):
        self._disturb, self._seconds = disturb, seconds
        self._end, self._thread = threading.Event(), None

    def __call__(self, progress):
        """Begin with the first step, end with the training."""
        if self._disturb is None or self._end.is_set():
            return
        if self._thread is None and progress.step > 0:
            given = ([worker.pid for worker in progress.workers], self._end, self._seconds)
            self._thread = threading.Thread(target=self._disturb, args=given)
            self._thread.start()
        if progress.phase is not None and progress.phase.activity in AFTER_TRAINING:
            self.end()

    def end(self):
        """Disturb no longer."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
