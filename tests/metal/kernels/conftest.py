"""Every engine that this machine can run kernels with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlxhog.metal.engine import Engine, ReferenceEngine
from mlxhog.metal.host.engine import HostEngine


@pytest.fixture(params=["reference", "mlx", "mps"])
def engine(request: pytest.FixtureRequest, host_engine: Callable[..., HostEngine]) -> Engine:
    """The NumPy reference, and the host shim with the text of each framework."""
    return ReferenceEngine() if request.param == "reference" else host_engine(request.param)
