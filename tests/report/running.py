"""A run that another process trains."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mlxhog import train
from mlxhog.checkpoint.run import Run, list_runs
from mlxhog.report.history import newest_line
from mlxhog.training import reporting
from tests.another_process import Running
from tests.training.small import small_config

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], limit_s: float = 60.0) -> T:
    """The first result of a condition that counts as true."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


def _train(root: Path, seconds: float, metrics_s: float) -> None:
    reporting.METRICS_S = metrics_s
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    workers = {"workers": "mlx:cpu*2", "slow": "0=8,1=8"}  # they leave the cores to who watches
    train(small_config(root, steps=None, time=seconds, **workers))


class Training:
    """A run in a process of its own, whose metrics have a line in so many seconds."""

    def __init__(self, root: Path, seconds: float, metrics_s: float = 0.2) -> None:
        self.process = Running(_train, root, seconds, metrics_s)
        self.run: Run = wait_until(lambda: self._run(root / "runs"))

    def _run(self, runs: Path) -> Run | None:
        assert self.process.poll() is None
        listed = list_runs(runs)
        return listed[0] if listed and newest_line(listed[0].metrics_path) else None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
