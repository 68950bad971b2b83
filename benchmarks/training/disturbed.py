"""Runs of fixed length whose workers are disturbed: `auto` beside the strategies that stay.

Every arm trains the same seconds at the numbers that its strategy has by default, so `auto` has
those of the strategy in use. Its pair in each seed is the best of the others, in bits per byte of
the same held-out text after training.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.claims import Claim, Sample
from harness.estimates import Ratio
from harness.machine import one_of_a_kind, smallest
from training.race import Race
from training.recording import BYTES, of_this_size

from mlxhog import TrainConfig
from mlxhog.checkpoint.run import Run
from mlxhog.report.metrics import Activity
from mlxhog.training.run import train

WITHIN = 1.03
"""Largest ratio of bits per byte, `auto` over the best of the others."""

AUTO = "auto"
ARMS = {
    "sync": {"strategy": "sync"},
    "sync by speed": {"strategy": "sync", "sync_shares": "speed"},
    "hogwild": {"strategy": "hogwild"},
    AUTO: {"strategy": "auto"},
}
OPTIONS = {
    "workers": "mlx:cpu,torch:cpu", "threads": 1,
    "eval_every": "1h", "sample_every": "off", "save_every": "off",
}  # fmt: skip
"""Of all arms. Model, tokenizer and batch are those of `mlxhog train`."""
AFTER_TRAINING = (Activity.FINISHING, Activity.EVALUATING, Activity.SCORING)

Disturb = Callable[[list[int], threading.Event, float], None]
"""Disturbs workers with these pids until an event, in a run of n seconds."""


@dataclass(frozen=True)
class Disturbance:
    """In what workers are not equally fast.

    Attributes:
        slow: makes the option of `TrainConfig` of the seconds of a run.
        disturb: disturbs the workers while they train.
    """

    slow: Callable[[float], str] | None = None
    disturb: Disturb | None = None


def stop_now_and_then(pids, end, seconds, *, period_s, share, begin=0.0):
    """Stop the last worker for a share of each period, from a share of the run on."""
    pid = pids[-1]
    end.wait(begin * seconds)
    with suppress(ProcessLookupError):
        while not end.is_set():
            os.kill(pid, signal.SIGSTOP)
            end.wait(share * period_s)
            os.kill(pid, signal.SIGCONT)
            end.wait((1 - share) * period_s)


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


SLOW_LATER = partial(stop_now_and_then, period_s=0.04, share=0.75, begin=0.5)
DISTURBANCES = {
    "equal": Disturbance(),
    "one 2x slower": Disturbance(lambda _: "1=2"),
    "one 4x slower": Disturbance(lambda _: "1=4"),
    "one becomes 4x slower": Disturbance(disturb=SLOW_LATER),
    "random sleeps": Disturbance(lambda _: "0=random:0.1:6,1=random:0.1:6"),
    "another program": Disturbance(disturb=compute_beside),
    "one joins late": Disturbance(lambda seconds: f"1=late:{seconds / 3:g}"),
    "one stopped half of the time": Disturbance(
        disturb=partial(stop_now_and_then, period_s=1.0, share=0.5)
    ),
}


class Disturber:
    """An observer of a run: disturbs its workers from their first step to their last."""

    def __init__(self, disturb, seconds):
        """Prepare for a run of n seconds."""
        self._disturb, self._seconds = disturb, seconds
        self._end = threading.Event()
        self._thread = None

    def __call__(self, progress):
        """Begin with the first step, end with the training."""
        if self._disturb is None or self._end.is_set():
            return
        if self._thread is None and progress.step > 0:
            pids = [worker.pid for worker in progress.workers]
            given = (pids, self._end, self._seconds)
            self._thread = threading.Thread(target=self._disturb, args=given)
            self._thread.start()
        over = progress.doing is not None and progress.doing.activity in AFTER_TRAINING
        if over and self._thread is not None:
            self.end()

    def end(self):
        """Disturb no longer."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()


@one_of_a_kind
def trained(arm, disturbance, seed, seconds):
    """Bits per byte after a training, and the changes of its strategy in words."""
    seconds = smallest(1.0, seconds)
    disturber = Disturber(disturbance.disturb, seconds)
    slow = None if disturbance.slow is None else disturbance.slow(seconds)
    with tempfile.TemporaryDirectory(prefix="mlxhog-benchmark-") as out:
        options = {**OPTIONS, **arm, "slow": slow, "seed": seed, "out": out}
        options |= smallest(BYTES, {})
        options = of_this_size({**options, "time": seconds})
        try:
            result = train(TrainConfig(**options), observer=disturber)
        finally:
            disturber.end()
        if result.status == "interrupted":
            raise KeyboardInterrupt
        assert result.val_bits_per_byte is not None, result
        return result.val_bits_per_byte, changes(Run(Path(result.run)))


def changes(run):
    """The changes of a run's strategy: seconds and strategy of each."""
    from mlxhog.report.record import EventLog

    events = EventLog(run.events_path).update()
    every = [one for one in events if one.kind == "strategy" and one.elapsed_s is not None]
    return ", ".join(f"{one.elapsed_s:.1f} s {one.text.split(':')[0]}" for one in every)


def arms(drops=()):
    """The arms, and lock-free training without gradients that are later than each of `drops`."""
    dropping = {
        f"drop:{most}": {**ARMS["hogwild"], "staleness_lr": f"drop:{most}"} for most in drops
    }
    return {**ARMS, **dropping}


def measure(names, seeds, seconds, found, drops=()):
    """Run all arms under some disturbances, seed by seed, and `sync` twice."""
    taken, seeds = arms(drops), list(seeds)

    def run(name, arm, seed):
        value, changed = trained(taken[arm], DISTURBANCES[name], seed, seconds)
        print(f"  {name}, seed {seed}  {arm:14} {value:.3f}  {changed}", flush=True)
        return value

    table, again = Race(dict.fromkeys(names, list(taken)), seeds, run).run(twin="sync")
    for name, own in again.items():
        found.same(f"{name}, sync, bits per byte", table[name]["sync"], own)
    print(f"\nbits per byte after {seconds:g} s (median, range)")
    for name, bits in table.items():
        print(f"  {name}")
        for arm, values in bits.items():
            print(f"    {arm:14} {Sample.of(values).spelt('.3f')}")
        found.claims.append(claim(name, bits))
    found.results["auto"] = {
        name: {arm: Sample.of(values) for arm, values in bits.items()}
        for name, bits in table.items()
    }


def claim(name, bits):
    """The claim that `auto` is near the best of the arms that stay, seed by seed."""
    others = zip(*(bits[arm] for arm in ARMS if arm != AUTO), strict=True)
    ratio = Ratio.of(bits[AUTO], list(map(min, others)))
    return Claim.of(f"{name}: auto / best of the others", ratio, "<=", WITHIN)
