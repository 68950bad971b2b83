"""Requests to a run of a test from a thread, as from another terminal."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlxhog.arena.requests import ask
from mlxhog.checkpoint import run
from mlxhog.training.supervisor.training import train
from tests.threads import wait_until
from tests.training.small import small_config

LIMIT_S = 240.0  # less than pytest's own, which would not say what was waited for


def trained(config, act, steps=3, *, observer=None, stops=True):
    """Train while a thread acts once, from n steps on, with the run's folder; then stop the run."""

    def act_and_stop():
        directory = run.find("latest", Path(config.runs_dir)).directory
        try:
            act(directory)
        finally:
            if stops:
                ask(directory, "stop")

    acts = []

    def observe(progress):
        if observer is not None:
            observer(progress)
        if not acts and progress.step >= steps:
            acts.append(thread.submit(act_and_stop))

    with ThreadPoolExecutor(1) as thread:
        result = train(config, observer=observe)
        (act_of_thread,) = acts
        act_of_thread.result(LIMIT_S)
    return result


def endless(tmp_path, **options):
    """A run without an end of its own, lock-free unless the options say otherwise."""
    ending = {"steps": None, "time": 3600.0}
    return small_config(tmp_path, **{"strategy": "hogwild", **ending, **options})


def until(directory, condition):
    """Ask for the status of a run until its workers, by slot, meet a condition; returns them."""

    def workers():
        now = {one["slot"]: one for one in ask(directory, "status")["workers"]}
        return now if condition(now) else None

    return wait_until(workers, LIMIT_S, "the workers of a run")
