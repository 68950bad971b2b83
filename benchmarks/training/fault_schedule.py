"""A schedule of faults, drawn from a seed: what is planted in a training run, and when.

A fault begins at a moment of the run and may end at a later one. The seed repeats the kinds and
their distances, not the moments at which they meet the run.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

from training.faults import SETTLE_S, filled

GAPS_S = 0.5, 4.0  # between the beginnings of two faults


@dataclass(order=True)
class Event:
    """Something to do at a moment of the run."""

    at_s: float
    act: Callable[[], None] = field(compare=False)


class FaultSchedule:
    """Draws faults from a seed and plants them in one run after the other."""

    KINDS = (
        ("kill one", 6), ("kill all", 1), ("stop one", 6), ("stop one for long", 1),
        ("stop the group", 2), ("full disk", 2), ("closed pipe", 1), ("kill the supervisor", 1),
    )  # fmt: skip

    def __init__(self, seed, counts, workers, heartbeat_s, *, disk):
        """Prepare a schedule.

        Args:
            seed: draws the faults.
            counts: how many of each kind were planted; this adds to them.
            workers: of a run.
            heartbeat_s: how long a stopped worker passes for a living one.
            disk: whether the folder of runs may be filled.
        """
        self.random = Random(seed)
        self._counts, self._workers, self._heartbeat_s = counts, workers, heartbeat_s
        self._kinds = [kind for kind in self.KINDS if disk or kind[0] != "full disk"]
        self._due = []
        self._next_s = 0.0

    def begin(self, run):
        """Plant faults in this run from now on."""
        self._run, self._due, self._piped, self._full = run, [], True, ExitStack()
        self.filled_disk = False
        self._next_s = time.monotonic() + self.random.uniform(0.0, GAPS_S[1])

    def end(self):
        """Undo what is still planted."""
        self._full.close()
        for event in sorted(self._due):
            event.act()

    def step(self, *, calm):
        """End faults whose time is over, and begin the next one if it is due.

        Where calm, none begins: workers that start again may need longer than faults leave them.
        """
        now = time.monotonic()
        for event in sorted(self._due):
            if event.at_s <= now:
                self._due.remove(event)
                event.act()
        if calm or now < self._next_s:
            return
        names, weights = zip(*self._kinds, strict=True)
        (kind,) = self.random.choices(names, weights)
        rank, share = self.random.randrange(self._workers), self.random.random()
        self._next_s = now + self.random.uniform(*GAPS_S)
        if self._plant(kind, rank + 1, share):
            self._counts[kind] = self._counts.get(kind, 0) + 1

    def _plant(self, kind, slot, share):
        """Begin one fault; False where it cannot be now."""
        run = self._run
        if kind == "kill one":
            run.send([slot], signal.SIGKILL)
        elif kind == "kill all":
            run.send(run.living(), signal.SIGKILL)
        elif kind in ("stop one", "stop one for long"):
            if run.held:
                return False
            for_s = 2.0 * self._heartbeat_s if kind.endswith("long") else 0.1 + 3.0 * share
            run.held.add(slot)
            run.send([slot], signal.SIGSTOP)
            self._later(for_s, lambda: self._go_on([slot]))
        elif kind == "stop the group":
            run.send_all(signal.SIGSTOP)
            run.all_held = True
            self._later(1.5 * self._heartbeat_s * share, self._wake_all)
            self._next_s += 1.5 * self._heartbeat_s * share  # nothing runs that a fault could meet
        elif kind == "full disk":
            self._full.enter_context(filled(run.out))
            self.filled_disk = True
            self._later(0.5 + 3.0 * share, self._full.close)
        elif kind == "closed pipe":
            if not self._piped:
                return False
            run.close_pipe()
            self._piped = False
        else:
            run.process.kill()
        run.quiet_since = time.monotonic() + SETTLE_S
        return True

    def _later(self, for_s, act):
        def settled():
            act()
            self._run.quiet_since = time.monotonic() + SETTLE_S

        self._due.append(Event(time.monotonic() + for_s, settled))

    def _wake_all(self):
        self._run.send_all(signal.SIGCONT)
        self._run.all_held = False

    def _go_on(self, slots):
        self._run.send(slots, signal.SIGCONT)
        self._run.held.difference_update(slots)
