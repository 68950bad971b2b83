"""Scripts of benchmarks/ for tests: tests import them by their path."""

import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def _usual_sizes(monkeypatch):
    """A test that asks for `--tiny` in this process leaves it to no other."""
    monkeypatch.setenv("MLXHOG_BENCHMARK_TINY", "")
    monkeypatch.delenv("MLXHOG_BENCHMARK_TINY")


@pytest.fixture
def check_scripts(
    tmp_path, tmp_path_factory, emulator_cache, kept_sotu, monkeypatch, record_property
):
    """Runs a group of `tests/benchmarks/scripts.py`; its scripts share a cache of corpora."""
    from tests.benchmarks.scripts import GROUPS, check

    folder = tmp_path_factory.getbasetemp() / "benchmarks-cache"
    (folder / "mlxhog").mkdir(exist_ok=True, parents=True)
    with suppress(FileExistsError):
        (folder / "mlxhog" / "metal").symlink_to(emulator_cache)
        shutil.copytree(kept_sotu, folder / "mlxhog" / kept_sotu.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return lambda group: check(GROUPS[group].split(), tmp_path, record_property)
