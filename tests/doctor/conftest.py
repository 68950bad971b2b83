"""A cache that all tests of one module share, for what a command leaves there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def environ(shim_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a command that finds compiled kernels in its cache."""
    cache: Path = tmp_path_factory.mktemp("cache")
    (cache / "mlxhog").mkdir()
    (cache / "mlxhog" / "metal").symlink_to(shim_cache)
    return os.environ | {"XDG_CACHE_HOME": str(cache)}
