"""A browser and runs for the pages of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium, visit
from tests.report.running import Training

__all__ = ["chromium", "training", "visit"]


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Any]:
    """Starts runs; they are ended with the test."""
    started: list[Training] = []

    def start(seconds: float, metrics_s: float = 0.2) -> Training:
        started.append(Training(tmp_path, seconds, metrics_s))
        return started[-1]

    yield start
    for each in started:
        each.kill()
