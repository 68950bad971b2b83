"""A worker or the host of a classic run is killed: no orphan, no hang, one clear sentence."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxhog.classic.config import ClassicConfig
from mlxhog.classic.run import train
from mlxhog.errors import WorkerFailed
from tests.classic.small import hinge
from tests.processes import alive, workers_of
from tests.threads import wait_until

MANY = hinge(n=400_000, d=2000)  # an epoch takes some polls of the host, so that kills fall into it
ROOT = Path(__file__).parents[2]


def worker_pids():
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


class Killer:
    """Kills a worker in the midst of an epoch, once."""

    victim = 0

    def __call__(self, progress):
        if not self.victim and 0 < progress.done < MANY.n_examples and worker_pids():
            self.victim = worker_pids()[-1]
            os.kill(self.victim, signal.SIGKILL)


def run_of(scheme, **options):
    workers = 1 if scheme == "serial" else 2
    return ClassicConfig(workers=workers, scheme=scheme, epochs=10_000, beta=1.0, **options)


@pytest.mark.parametrize("scheme", ["hogwild", "aig", "round_robin", "sync", "cyclades", "serial"])
def test_a_killed_worker_ends_the_run_with_a_sentence_and_leaves_no_process(scheme):
    options = {"component_batch": 50_000} if scheme == "cyclades" else {}
    watch = Killer()
    with pytest.raises(WorkerFailed, match=r"worker \d failed, and the run .* \(signal SIGKILL\)"):
        train(MANY, run_of(scheme, **options), watch)
    assert watch.victim
    assert not worker_pids()


def test_a_worker_that_is_killed_while_it_starts_ends_the_run():
    def at_once(progress):
        for pid in worker_pids():
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerFailed, match=r"worker \d failed, and the run .* \(signal SIGKILL\)"):
        train(MANY, run_of("hogwild"), at_once)
    assert not worker_pids()


def test_nothing_outlives_a_host_that_is_killed():
    code = (
        "from mlxhog.classic.config import ClassicConfig\n"
        "from mlxhog.classic.run import train\n"
        "from tests.classic.small import hinge\n"
        "if __name__ == '__main__':\n"
        "    train(hinge(n=60_000), ClassicConfig(workers=2, epochs=100_000, beta=1.0))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_until(lambda: len(workers_of(host.pid)) == 2)
        workers = workers_of(host.pid)
    finally:
        host.kill()
        host.wait()
    wait_until(lambda: not any(map(alive, workers)))


def test_an_interrupted_run_keeps_the_epochs_that_it_has_measured():
    def impatient(progress):
        if progress.epoch is not None and progress.epoch.number == 3:
            raise KeyboardInterrupt

    result = train(MANY, run_of("hogwild"), impatient)
    assert (result.status, len(result.epochs)) == ("interrupted", 3)
    assert not worker_pids()
