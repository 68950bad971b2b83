"""Writers of a run of patterns fork; observers of runs are called at every look."""

import sys

import pytest

from mlxhog.training import reporting
from tests import forked
from tests.live import patterns


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(reporting, "REPORT_S", 0.0)
    if sys.platform == "linux":
        monkeypatch.setattr(patterns, "SPAWN", forked.CONTEXT)
