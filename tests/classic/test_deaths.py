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

EXAMPLES = 400_000  # an epoch takes some polls of the host, so that kills fall into it
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def many():
    return hinge(n=EXAMPLES, d=2000)


def worker_pids():
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def killer(*, amid):
    """Kill a worker once: in the midst of an epoch, or while it starts."""
    victims = []

    def watch(progress):
        if not victims and worker_pids() and (0 < progress.done < EXAMPLES or not amid):
            victims.append(worker_pids()[-1])
            os.kill(victims[0], signal.SIGKILL)

    return watch


def run_of(scheme, **options):
    workers = 1 if scheme == "serial" else 2
    return ClassicConfig(workers=workers, scheme=scheme, epochs=10_000, beta=1.0, **options)


@pytest.mark.parametrize(
    ("scheme", "amid"),
    [("hogwild", True), ("aig", True), ("round_robin", True), ("sync", True), ("cyclades", True),
     ("serial", True), ("hogwild", False)],
)  # fmt: skip
def test_a_killed_worker_ends_the_run_with_a_sentence_and_leaves_no_process(many, scheme, amid):
    options = {"component_batch": 50_000} if scheme == "cyclades" else {}
    with pytest.raises(WorkerFailed, match=r"worker \d failed, and the run .* \(signal SIGKILL\)"):
        train(many, run_of(scheme, **options), killer(amid=amid))
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
