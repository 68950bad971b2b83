"""A browser and runs for the pages of a run."""

import os
import signal

import pytest

from mlxhog import train
from mlxhog.checkpoint.run import list_runs
from mlxhog.report.history import newest_line
from mlxhog.training import reporting
from tests.another_process import Running
from tests.browser import chromium, visit
from tests.threads import wait_until
from tests.training.small import small_config

__all__ = ["chromium", "going_on", "visit"]


def _train(root, seconds):
    reporting.METRICS_S = 0.2
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    workers = {"workers": "mlx:cpu*2", "slow": "0=8,1=8"}  # they leave the cores to who watches
    train(small_config(root, steps=None, time=seconds, **workers))


class Training:
    """A run in a process of its own, whose metrics have a line in a fifth of a second."""

    def __init__(self, root, seconds):
        self.process = Running(_train, root, seconds)
        self.run = wait_until(lambda: self._run(root / "runs"))

    def _run(self, runs):
        assert self.process.poll() is None
        listed = list_runs(runs)
        return listed[0] if listed and newest_line(listed[0].metrics_path) else None

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)


@pytest.fixture(scope="module")
def going_on(tmp_path_factory):
    """A run; the last test of it in a module may end it."""
    trained = Training(tmp_path_factory.mktemp("going on"), 120)
    yield trained
    trained.process.kill()
    trained.process.wait()
