"""A thread that sends requests to a run of a test, as another terminal would."""

import threading
import time
from pathlib import Path

from mlxhog import train
from mlxhog.arena.requests import ask
from mlxhog.checkpoint import run
from tests.training.small import small_config

LIMIT_S = 300.0


class Client:
    """Acts in its own thread once a run has n steps, as another terminal would."""

    def __init__(self, config, act, steps=3):
        self._root, self._act, self._steps = Path(config.out), act, steps
        self._thread = None
        self._error = None

    def __call__(self, progress):
        """Observe the run."""
        if self._thread is None and progress.step >= self._steps:
            self._thread = threading.Thread(target=self._run)
            self._thread.start()

    def _run(self):
        try:
            self._act(run.find("latest", self._root).directory)
        except BaseException as error:
            self._error = error

    def finish(self):
        """Wait until it is done; its errors are raised here."""
        assert self._thread is not None
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


def trained(config, act, steps=3):
    """Train while another terminal acts once, then ends the run."""

    def act_and_stop(directory):
        try:
            act(directory)
        finally:
            ask(directory, "stop")

    client = Client(config, act_and_stop, steps)
    result = train(config, observer=client)
    client.finish()
    return result


def endless(tmp_path, **options):
    """A run without an end of its own, lock-free unless the options say otherwise."""
    ending = {"steps": None, "time": 3600.0}
    return small_config(tmp_path, **{"strategy": "hogwild", **ending, **options})


def until(directory, condition):
    """Ask for the status of a run until its workers, by slot, meet a condition; returns them."""
    end = time.monotonic() + LIMIT_S
    while True:
        workers = {one["slot"]: one for one in ask(directory, "status")["workers"]}
        if condition(workers):
            return workers
        assert time.monotonic() < end, workers
