"""The one place that says why a test of this folder was left out: it needs an Apple GPU."""

import mmap

import mlx.core as mx
import numpy as np
import pytest

from mlxhog.metal import engines


@pytest.fixture
def metal_device():
    """An Apple GPU that MLX sees, and computes on: other tests have chosen the CPU."""
    if not mx.metal.is_available():
        pytest.skip("no Metal device: mx.metal.is_available() is False")
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(params=["mlx", "mps"])
def engine(request, metal_device):
    """Each framework's engine on the GPU."""
    return engines.create(request.param)


@pytest.fixture
def pages(metal_device):
    """Makes host memory that a GPU can import: zeros, whole pages, as an arena has them."""

    def make(n_pages):
        return np.frombuffer(mmap.mmap(-1, n_pages * mmap.PAGESIZE), np.float32)

    return make
