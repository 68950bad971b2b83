"""Workers and the host of a classic run are killed at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxhog.arena import process
from mlxhog.classic import dispatcher
from mlxhog.classic.config import ClassicConfig, claim_size
from mlxhog.classic.result import ClassicProgress
from mlxhog.classic.session import train
from mlxhog.errors import WorkerFailed
from tests.classic.small import hinge
from tests.processes import alive, workers_of

MANY = hinge(n=100_000, d=2000)  # epochs of some milliseconds, so that kills fall into them
ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


def worker_pids() -> list[int]:
    return [
        child.pid
        for child in multiprocessing.active_children()
        if child.name.startswith("mlxhog-classic") and child.pid is not None
    ]


class Killer:
    """Kills a worker in the midst of an epoch, `kills` times, in different epochs."""

    signum = signal.SIGKILL

    def __init__(self, kills: int, n: int) -> None:
        self.kills, self.n = kills, n
        self.messages: list[str] = []
        self._next = 0

    def __call__(self, progress: ClassicProgress) -> None:
        if progress.message is not None:
            self.messages.append(progress.message)
        ended = 0 if progress.epoch is None else progress.epoch.number
        if self.kills and 0 < progress.done < self.n and ended >= self._next and worker_pids():
            os.kill(worker_pids()[self.kills % len(worker_pids())], self.signum)
            self.kills, self._next = self.kills - 1, ended + 1


@pytest.mark.parametrize(
    "options",
    [
        {"write": "lossless"},
        {"write": "hot-cold", "handout": "queue"},
        {"scheme": "aig"},
        {"write": "racy", "handout": "epoch"},
    ],
    ids=str,
)
def test_hogwild_goes_on_without_workers_that_are_killed(options):
    watch = Killer(kills=2, n=MANY.n_examples)
    every_epoch = options.get("handout") == "epoch"
    epochs = 6 if every_epoch else 40
    result = train(MANY, ClassicConfig(workers=2, epochs=epochs, beta=1.0, **options), watch)
    assert watch.kills == 0
    assert (result.status, len(result.epochs)) == ("done", epochs)
    if not every_epoch:  # there a worker may have done its share, and been about to leave
        assert result.replaced == len(watch.messages) == 2
        assert "SIGKILL" in watch.messages[0]
    assert result.objective < result.initial["objective"]
    examples = sum(epoch.examples for epoch in result.epochs)
    assert examples + result.missed >= epochs * MANY.n_examples
    assert not worker_pids()


def test_of_a_queue_whose_takers_all_die_only_what_they_had_in_hand_is_missing():
    class Massacre(Killer):
        def __call__(self, progress: ClassicProgress) -> None:
            if self.kills and 0 < progress.done < self.n // 2 and len(worker_pids()) == 2:
                for pid in worker_pids():
                    os.kill(pid, self.signum)
                self.kills = 0

    watch = Massacre(kills=1, n=MANY.n_examples)
    config = ClassicConfig(workers=2, epochs=60, beta=1.0, write="racy", handout="queue")
    result = train(MANY, config, watch)
    assert (watch.kills, result.status, result.replaced) == (0, "done", 2)
    assert result.missed <= 2 * claim_size(MANY.defaults.batch_size)


@pytest.mark.parametrize("scheme", ["round_robin", "sync", "avg_runs", "serial"])
def test_a_scheme_that_needs_everybody_says_who_died(scheme):
    watch = Killer(kills=1, n=MANY.n_examples)
    workers = 1 if scheme == "serial" else 2
    config = ClassicConfig(workers=workers, scheme=scheme, epochs=10_000, beta=1.0)
    with pytest.raises(WorkerFailed, match=rf"worker \d died \(signal SIGKILL\), and {scheme}"):
        train(MANY, config, watch)
    assert not worker_pids()


def test_a_worker_that_keeps_dying_ends_the_run():
    watch = Killer(kills=1000, n=MANY.n_examples)
    with pytest.raises(WorkerFailed, match="died 6 times"):
        train(MANY, ClassicConfig(workers=1, write="racy", epochs=10_000, beta=1.0), watch)
    assert not worker_pids()


@pytest.mark.slow
def test_hogwild_goes_on_without_a_worker_that_is_stopped(monkeypatch):
    monkeypatch.setattr(dispatcher, "STALL_S", 1.0)

    class Stopper(Killer):
        signum = signal.SIGSTOP

    watch = Stopper(kills=1, n=MANY.n_examples)
    result = train(MANY, ClassicConfig(workers=2, epochs=60, beta=1.0), watch)
    assert result.status == "done"
    assert result.replaced >= 1
    assert "no example was done for 1 s" in watch.messages[0]
    assert not worker_pids()


@pytest.mark.slow
def test_a_pause_of_the_whole_group_is_no_stall(monkeypatch):
    class Pauser(Killer):
        """Stops a worker for 40 looks, an hour each, as Ctrl-Z stops all."""

        signum, hours = signal.SIGSTOP, 0

        def __call__(self, progress: ClassicProgress) -> None:
            super().__call__(progress)
            if not self.kills and self.hours < 40:
                self.hours += 1
                for pid in worker_pids() if self.hours == 40 else ():
                    os.kill(pid, signal.SIGCONT)

    watch, now_ns = Pauser(kills=1, n=MANY.n_examples), process.monotonic_ns
    monkeypatch.setattr(process, "monotonic_ns", lambda: now_ns() + watch.hours * 3600 * 10**9)
    result = train(MANY, ClassicConfig(workers=2, epochs=60, beta=1.0), watch)
    assert (watch.hours, result.status, result.replaced) == (40, "done", 0)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_outlives_a_host_that_is_killed():
    code = (
        "from mlxhog.classic.config import ClassicConfig\n"
        "from mlxhog.classic.session import train\n"
        "from tests.classic.small import hinge\n"
        "if __name__ == '__main__':\n"
        "    train(hinge(n=60_000), ClassicConfig(workers=2, epochs=100_000, beta=1.0))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_for(lambda: len(workers_of(host.pid)) == 2)
        workers = workers_of(host.pid)
    finally:
        host.kill()
        host.wait()
    wait_for(lambda: not any(map(alive, workers)))


def test_an_interrupted_run_keeps_the_epochs_that_it_has_measured():
    def impatient(progress: ClassicProgress) -> None:
        if progress.epoch is not None and progress.epoch.number == 3:
            raise KeyboardInterrupt

    result = train(MANY, ClassicConfig(workers=2, epochs=10_000, beta=1.0), impatient)
    assert (result.status, len(result.epochs)) == ("interrupted", 3)
    assert not worker_pids()
