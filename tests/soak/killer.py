"""Kills workers of a run that trains in this process."""

import os
import random
import signal
import time
from functools import partial
from unittest import mock

from mlxhog.arena.workers import WorkerState
from mlxhog.training.supervisor.session import Session
from mlxhog.training.supervisor.training import train

quietly = partial(train, observer=None)


class Killer:
    """Kills workers of a run, and waits until they are replaced.

    The next victim is drawn by the seed, or is the worker of a backend. It dies after a step of its
    own, or half a second without one. All die in the supervisor's first look at the training; none
    may take a batch before it, or while a dead one is replaced and another kill is to come. So the
    run cannot end too early, however slow the machine is.

    Without `holds` a look kills one at most, after a step, and the run may end with kills left.
    """

    def __init__(self, kills=1, backends=(), number=signal.SIGKILL, seed=0, holds=True):
        self.left, self.backends, self.number, self._holds = kills, backends, number, holds
        self._random, self._killed = random.Random(seed), set()
        self._slot = self._steps = 0  # of the next victim, when it was chosen
        self._looks = kills > 0

    def train(self, config, run=quietly, **how):
        """Train, or call another function with a session of workers, and kill."""
        poll, begin_training = Session.poll, Session.begin_training

        def poll_and_kill(session, doing=None):
            poll(session, doing)
            while self._looks and self._look(session):
                poll(session, doing)

        def begin_held(session):
            self._hold(session, self._looks)
            return begin_training(session)

        with (
            mock.patch.object(Session, "poll", poll_and_kill),
            mock.patch.object(Session, "begin_training", begin_held),
        ):
            return run(config, **how)

    def _look(self, session):
        """Kill the next victim if all workers are up; whether to look again at once."""
        entries = session.arena.workers
        if not session.arena.counters.load("start_ns"):
            return False
        up = {
            handle.slot: handle.spec.backend
            for handle in session.workers.handles
            if handle.entry.state == WorkerState.RUNNING and handle.entry.pid not in self._killed
        }
        if len(up) < len(session.workers.handles):
            return self._holds
        if not self.left:
            self._looks = False
            return False
        if not self._slot:
            name = self.backends[self.left - 1] if self.backends else ""
            self._slot = self._random.choice([k for k in up if name in ("", up[k])])
            self._steps = entries.entry(self._slot).steps
            self._hold(session, False)
        victim = entries.entry(self._slot)
        for _ in range(1000):  # the steps of a small run take less than the supervisor's poll
            if victim.steps > self._steps:
                break
            time.sleep(0.0005)
        else:
            if not self._holds:
                return False
            # It dies without a step: others may have taken all that are left.
        time.sleep(self._random.random() * min(0.02, victim.step_s))  # into any part of a step
        os.kill(victim.pid, self.number)
        self._killed.add(victim.pid)
        self.left -= 1
        self._slot = 0
        self._hold(session, self.left > 0)
        return self._holds

    def _hold(self, session, held):
        """Let no worker take a batch, or let all again."""
        if self._holds:
            session.arena.counters.store("pause", int(held))
