"""A run that another process trains."""

import os
import signal
from typing import TypeVar

from mlxhog import train
from mlxhog.checkpoint.run import list_runs
from mlxhog.report.history import newest_line
from mlxhog.training import reporting
from tests.another_process import Running
from tests.threads import wait_until
from tests.training.small import small_config

T = TypeVar("T")


def _train(root, seconds, metrics_s):
    reporting.METRICS_S = metrics_s
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    workers = {"workers": "mlx:cpu*2", "slow": "0=8,1=8"}  # they leave the cores to who watches
    train(small_config(root, steps=None, time=seconds, **workers))


class Training:
    """A run in a process of its own, whose metrics have a line in so many seconds."""

    def __init__(self, root, seconds, metrics_s=0.2):
        self.process = Running(_train, root, seconds, metrics_s)
        self.run = wait_until(lambda: self._run(root / "runs"))

    def _run(self, runs):
        assert self.process.poll() is None
        listed = list_runs(runs)
        return listed[0] if listed and newest_line(listed[0].metrics_path) else None

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def kill(self):
        self.process.kill()
        self.process.wait()
