"""Every engine that this machine can run kernels with."""

import pytest

from mlxhog.metal.engine import ReferenceEngine


@pytest.fixture(params=["reference", "mlx", "mps"])
def engine(request, host_engine):
    """The NumPy reference, and the host shim with the text of each framework."""
    return ReferenceEngine() if request.param == "reference" else host_engine(request.param)
