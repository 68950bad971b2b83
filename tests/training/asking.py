"""A thread that sends requests to a run of a test, as another terminal would."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxhog import TrainConfig, train
from mlxhog.arena.requests import ask
from mlxhog.checkpoint import run
from mlxhog.report.metrics import Progress, Result
from tests.training.small import small_config

LIMIT_S = 60.0


class Client:
    """Acts in its own thread once a run has n steps, as another terminal would."""

    def __init__(self, config: TrainConfig, act: Callable[[Path], object], steps: int = 3) -> None:
        self._root, self._act, self._steps = Path(config.out), act, steps
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __call__(self, progress: Progress) -> None:
        """Observe the run."""
        if self._thread is None and progress.step >= self._steps:
            self._thread = threading.Thread(target=self._run)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._act(run.find("latest", self._root).directory)
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Wait until it is done; its errors are raised here."""
        assert self._thread is not None
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


def trained(config: TrainConfig, act: Callable[[Path], object], steps: int = 3) -> Result:
    """Train while another terminal acts once, then ends the run."""

    def act_and_stop(directory: Path) -> None:
        try:
            act(directory)
        finally:
            ask(directory, "stop")

    client = Client(config, act_and_stop, steps)
    result = train(config, observer=client)
    client.finish()
    return result


def endless(tmp_path: Path, **options: object) -> TrainConfig:
    """A run without an end of its own, lock-free unless the options say otherwise."""
    ending = {"steps": None, "time": 120.0}
    return small_config(tmp_path, **{"strategy": "hogwild", **ending, **options})


def until(directory: Path, condition: Callable[[dict[int, Any]], bool]) -> dict[int, Any]:
    """Ask for the status of a run until its workers, by slot, meet a condition; returns them."""
    end = time.monotonic() + LIMIT_S
    while True:
        workers = {one["slot"]: one for one in ask(directory, "status")["workers"]}
        if condition(workers):
            return workers
        assert time.monotonic() < end, workers
