"""How far a kernel's results on an engine are from its reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mlxhog.metal.engine import Engine, ReferenceEngine
from mlxhog.metal.kernel import Launch


def disagreements(engine: Engine, launch: Launch) -> list[str]:
    """Run a launch of NumPy arrays on an engine; name each array that differs from the reference.

    The tolerance is the kernel's own, or that of a fused multiply-add.
    """
    kernel = launch.kernel
    wanted = {name: np.array(value)[()] for name, value in launch.inputs.items()}
    outputs = ReferenceEngine().run(replace(launch, inputs=wanted))
    scalars = {argument.name for argument in kernel.inputs if argument.scalar}
    inputs: dict[str, Any] = {
        name: value if name in scalars else engine.array(np.array(value))
        for name, value in launch.inputs.items()
    }
    got = engine.run(replace(launch, inputs=inputs))
    written = [argument.name for argument in kernel.inputs if argument.writes]
    pairs = [(name, inputs[name], wanted[name]) for name in written]
    pairs += [(name, got[name], outputs[name]) for name in outputs]
    rtol = kernel.allowed(emulated=engine.emulated)
    return [
        f"{kernel.name}: {name} differs by {error:.2g}, allowed {rtol:.2g}"
        for name, actual, reference in pairs
        for error in [_error(engine.host(actual), reference)]
        if not error <= rtol
    ]


def _error(actual: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value where that exceeds 1."""
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(actual, wanted) else np.inf
    if not np.array_equal(np.isnan(actual), np.isnan(wanted)):
        return np.inf
    difference = np.abs(actual.astype(np.float64) - wanted)
    return float(
        np.nanmax(difference, initial=0.0) / max(1.0, np.nanmax(np.abs(wanted), initial=0))
    )
