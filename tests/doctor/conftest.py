"""Compiled Metal kernels come from one cache; everything else each test has to itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_with_kernels(
    shim_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """Makes new cache folders in which compiled kernels are found."""

    def make() -> Path:
        folder: Path = tmp_path_factory.mktemp("cache")
        (folder / "mlxhog").mkdir()
        (folder / "mlxhog" / "metal").symlink_to(shim_cache)
        return folder

    return make


@pytest.fixture(autouse=True)
def _kernels(cache_with_kernels: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_with_kernels()))


@pytest.fixture(scope="module")
def environ(cache_with_kernels: Callable[[], Path]) -> dict[str, str]:
    """The environment of a command whose cache a whole module shares."""
    return os.environ | {"XDG_CACHE_HOME": str(cache_with_kernels())}
