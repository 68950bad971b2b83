"""Engines of the host shim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxhog.metal.host.engine import HostEngine


@pytest.fixture(scope="session")
def host_engine(shim_cache: Path) -> Callable[..., HostEngine]:
    """Makes engines on the session's cache: `host_engine("mlx", chaos=3, threads=1)`."""

    def make(consumer: str, **options: Any) -> HostEngine:
        return HostEngine(consumer, cache=shim_cache, **options)

    return make


@pytest.fixture(params=["mlx", "mps"])
def consumer(request: pytest.FixtureRequest) -> str:
    """Each framework whose text the shim runs."""
    name: str = request.param
    return name


@pytest.fixture
def shim(consumer: str, host_engine: Callable[..., HostEngine]) -> HostEngine:
    """An engine for each consumer."""
    return host_engine(consumer)
