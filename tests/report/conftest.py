"""A browser and runs for the pages of a run."""

import pytest

from tests.browser import chromium, visit
from tests.report.running import Training

__all__ = ["chromium", "training", "visit"]


@pytest.fixture
def training(tmp_path):
    """Starts runs; they are ended with the test."""
    started = []

    def start(seconds, metrics_s=0.2):
        started.append(Training(tmp_path, seconds, metrics_s))
        return started[-1]

    yield start
    for each in started:
        each.kill()
