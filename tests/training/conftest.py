"""Observers of runs are called at every poll, so that those that act on a run act soon."""

import pytest

from mlxhog.training import reporting


@pytest.fixture(autouse=True)
def _observed_often(monkeypatch):
    monkeypatch.setattr(reporting, "REPORT_S", 0.0)
