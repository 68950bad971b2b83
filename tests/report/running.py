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
from tests.training.small import small_config
if __name__ == "__main__":
    train(small_config(Path(sys.argv[1]), workers="mlx:cpu*2", steps=None, time=float(sys.argv[2])))
"""


def wait_until(condition: Callable[[], T | None], limit_s: float = 60.0) -> T:
    """The first result of a condition that counts as true."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


class Training:
    """A run in a process of its own."""

    def __init__(self, root: Path, seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(root), str(seconds)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.run: Run = wait_until(lambda: self._run(root / "runs"))

    def _run(self, runs: Path) -> Run | None:
        assert self.process.poll() is None
        found = list_runs(runs)
        return found[0] if found and newest_line(found[0].metrics_path) else None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
