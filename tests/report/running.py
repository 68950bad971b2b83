"""A run that another process trains."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mlxhog.checkpoint.run import Run, list_runs
from mlxhog.report.follow import newest_line

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
TRAIN = """
import sys
from pathlib import Path
from mlxhog import train
from mlxhog.training import reporting
from tests.training.small import small_config
if __name__ == "__main__":
    reporting.METRICS_S = float(sys.argv[3])
    workers = dict(workers="mlx:cpu*2", slow="0=8,1=8")  # they leave the cores to who watches
    train(small_config(Path(sys.argv[1]), steps=None, time=float(sys.argv[2]), **workers))
"""


def wait_until(condition: Callable[[], T | None], limit_s: float = 60.0) -> T:
    """The first result of a condition that counts as true."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


class Training:
    """A run in a process of its own, whose metrics have a line in so many seconds."""

    def __init__(self, root: Path, seconds: float, metrics_s: float = 2.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(root), str(seconds), str(metrics_s)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
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
