"""Scripts of benchmarks/ for tests: tests import them by their path."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def _usual_sizes(monkeypatch):
    """A test that asks for `--tiny` in this process leaves it to no other."""
    monkeypatch.setenv("MLXHOG_BENCHMARK_TINY", "")
    monkeypatch.delenv("MLXHOG_BENCHMARK_TINY")
