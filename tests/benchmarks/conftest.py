"""Scripts of benchmarks/ for tests: they are no part of the package."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _usual_sizes(monkeypatch):
    """A test that asks for `--tiny` in this process leaves it to no other."""
    monkeypatch.setenv("MLXHOG_BENCHMARK_TINY", "")
    monkeypatch.delenv("MLXHOG_BENCHMARK_TINY")


@pytest.fixture(scope="module")
def load():
    """Import a module by its name below benchmarks/."""
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path[:] = path
    names = {path.stem for path in BENCHMARKS.iterdir()}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in names:
            del sys.modules[name]
