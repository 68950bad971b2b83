"""The one place that says why a test of this folder was left out: it needs an Apple GPU."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlxhog.metal import engine as engines
from mlxhog.metal.engine import Engine


@pytest.fixture
def metal_device() -> Iterator[None]:
    """An Apple GPU that MLX sees, as the device that MLX computes on: other tests choose the CPU."""
    if not mx.metal.is_available():
        pytest.skip("no Metal device: mx.metal.is_available() is False")
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(params=["mlx", "mps"])
def engine(request: pytest.FixtureRequest, metal_device: None) -> Engine:
    """Each framework's engine on the GPU."""
    return engines.create(request.param)


@pytest.fixture
def pages(metal_device: None) -> Callable[[int], NDArray[np.float32]]:
    """Makes host memory that a GPU can import: zeros, whole pages, as an arena has them."""

    def make(n_pages: int) -> NDArray[np.float32]:
        return np.frombuffer(mmap.mmap(-1, n_pages * mmap.PAGESIZE), np.float32)

    return make
