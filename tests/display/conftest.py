"""A browser and runs for the pages of a run."""

import os
from types import SimpleNamespace

import pytest

from mlxhog import train
from mlxhog.checkpoint.run import list_runs
from mlxhog.display.history import newest_line
from mlxhog.training.supervisor import reporting
from tests.another_process import Running
from tests.browser import chromium, visit
from tests.threads import wait_until
from tests.training.small import small_config

__all__ = ["chromium", "going_on", "visit"]


def _train(root):
    reporting.METRICS_S = 0.2
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    workers = {
        "workers": "mlx:cpu*2",
        "inject_stragglers": "0=8,1=8",
    }  # they leave the cores to who watches
    train(small_config(root, steps=None, time=900.0, **workers))


@pytest.fixture(scope="module")
def going_on(tmp_path_factory):
    """A run and its process, with metrics every fifth of a second; the last test may end it."""
    root = tmp_path_factory.mktemp("going on")
    process = Running(_train, root)

    def first():
        assert process.poll() is None
        listed = list_runs(root / "runs")
        return listed[0] if listed and newest_line(listed[0].metrics_path) else None

    yield SimpleNamespace(process=process, run=wait_until(first))
    process.kill()
    process.wait()
