"""Metal kernels with a planted fault, on the CPU; for tests of what notices them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mlxhog.errors import MetalError
from mlxhog.metal.engine import ReferenceEngine


@dataclass
class FaultyEngine(ReferenceEngine):
    """NumPy's results, but those of one kernel are off by a share, or it does not run at all.

    Only launches with the numbers `only` have the fault.
    """

    kernel: str
    by: float | None = 1e-2
    only: dict[str, int] = field(default_factory=dict)

    def run(self, launch):
        results = super().run(launch)
        if launch.kernel.name != self.kernel or not self.only.items() <= launch.inputs.items():
            return results
        if self.by is None:
            raise MetalError(f"kernel {self.kernel} does not compile: error: unknown type 'flaot'")
        return {name: x * np.float32(1.0 + self.by) for name, x in results.items()}
