"""The NumPy references behind the `Engine` protocol: the fallback, and what others must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.metal.kernel import Launch


class ReferenceEngine:
    """Computes launches in NumPy; arrays are NumPy arrays, adopted ones the host's own."""

    name = "reference"
    emulated = False

    def array(self, host: NDArray[Any]) -> NDArray[Any]:
        """See `Engine.array`."""
        return host.copy()

    def adopt(self, host: NDArray[Any]) -> NDArray[Any]:
        """See `Engine.adopt`."""
        return host

    def host(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `Engine.host`."""
        return array

    def run(self, launch: Launch) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        kernel = launch.kernel
        outputs = {
            argument.name: np.zeros(launch.outputs[argument.name], argument.dtype)
            for argument in kernel.outputs
        }
        if 0 in launch.grid:
            return outputs
        instance = {"instance": launch.instance} if kernel.instances else {}
        with np.errstate(all="ignore"):  # a GPU does not warn of infinity and NaN either
            kernel.reference(**launch.inputs, **outputs, **instance)
        return outputs
