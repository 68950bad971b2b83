"""A worker of a classic run is killed: no orphan, no hang, one clear sentence."""

import multiprocessing
import os
import signal

import pytest

from mlxhog.errors import WorkerFailed
from mlxhog.research.classic.config import ClassicConfig
from mlxhog.research.classic.run import train
from tests.research.classic.small import hinge

EXAMPLES = 400_000  # an epoch takes some polls of the host, so that kills fall into it


@pytest.fixture(scope="module")
def many():
    return hinge(n=EXAMPLES, d=2000)


def worker_pids():
    """Of this run: a process that another file of tests left has another name."""
    children = multiprocessing.active_children()
    return [child.pid for child in children if child.name == "mlxhog-child"]


@pytest.mark.parametrize(
    ("strategy", "amid"),
    [("hogwild", True), ("aig", True), ("round_robin", True), ("sync", True), ("cyclades", True),
     ("serial", True), ("hogwild", False)],
)  # fmt: skip
def test_a_killed_worker_ends_the_run_with_a_sentence_and_leaves_no_process(many, strategy, amid):
    """In the midst of an epoch, or while it starts."""
    victims = []

    def kill(progress):
        if not victims and worker_pids() and (0 < progress.done < EXAMPLES or not amid):
            victims.append(worker_pids()[-1])
            os.kill(victims[0], signal.SIGKILL)

    options = {"component_batch": 50_000} if strategy == "cyclades" else {}
    workers = 1 if strategy == "serial" else 2
    config = ClassicConfig(workers=workers, strategy=strategy, epochs=10_000, beta=1.0, **options)
    words = r"worker \d failed, and the run .* \(signal SIGKILL, perhaps for.*use fewer --workers"
    with pytest.raises(WorkerFailed, match=words):
        train(many, config, kill)
    assert not worker_pids()
