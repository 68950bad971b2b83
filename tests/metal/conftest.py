"""Engines of the host shim."""

from __future__ import annotations

import shutil
import subprocess
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


@pytest.fixture(scope="session")
def clang() -> str:
    """A clang++ that knows `_Float16`."""
    for name in ("clang++", *(f"clang++-{version}" for version in range(22, 15, -1))):
        command = [name, "-x", "c++", "-fsyntax-only", "-"]
        if (
            shutil.which(name)
            and subprocess.run(
                command, input=b"_Float16 x;", capture_output=True, check=False
            ).returncode
            == 0
        ):
            return name
    pytest.skip("no clang that knows _Float16: apt-get install clang-16")


@pytest.fixture(params=["g++", "clang"])
def compiler(request: pytest.FixtureRequest) -> str:
    """Each C++ compiler that must understand the shim and the kernels."""
    name: str = request.param
    return name if name == "g++" else str(request.getfixturevalue("clang"))


@pytest.fixture(params=["mlx", "mps"])
def consumer(request: pytest.FixtureRequest) -> str:
    """Each framework whose text the shim runs."""
    name: str = request.param
    return name


@pytest.fixture
def shim(consumer: str, host_engine: Callable[..., HostEngine]) -> HostEngine:
    """An engine for each consumer."""
    return host_engine(consumer)
