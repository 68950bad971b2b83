"""Metal kernels with a planted fault, on the CPU; for tests of what notices them."""

import numpy as np

from mlxhog.errors import MetalError
from mlxhog.metal.host.engine import HostEngine


class FaultyEngine(HostEngine):
    """Right results, but those of one kernel are off by a share, or it does not run at all.

    Only launches with the numbers `only` have the fault.
    """

    def __init__(self, kernel, by=1e-2, only=None):
        super().__init__()
        self.kernel, self.by, self.only = kernel, by, only or {}

    def run(self, launch):
        results = super().run(launch)
        if launch.kernel.name != self.kernel or not self.only.items() <= launch.inputs.items():
            return results
        if self.by is None:
            raise MetalError(f"kernel {self.kernel} does not compile: error: unknown type 'flaot'")
        return {name: x * np.float32(1.0 + self.by) for name, x in results.items()}
