"""Whether MLX and PyTorch can share one memory, in both directions.

Nothing synchronises them: MLX has to have evaluated before torch looks, torch to have finished
before MLX does. Source of the rules: spec apple.md 2 and 12, number 13.
"""

from __future__ import annotations

from typing import Final

import mlx.core as mx
import numpy as np
import torch
import torch.utils.dlpack

from mlxhog.arena.child import Lane
from mlxhog.doctor.checks import Check, Result, absent, check

NO_GPU: Final = "no Apple GPU that torch sees"
_N: Final = 64


def examine(lane: Lane) -> list[Check]:
    """In a child: try DLPack on the CPU and on MPS."""
    mps = "DLPack from MLX to torch on MPS"
    expected = "each sees what the other writes"
    if torch.backends.mps.is_available():
        there = _shared(mps, expected, "--gpu-write metal is not for torch:mps workers here")
        return [there]
    on_cpu = _shared(
        "DLPack from MLX to torch on the CPU",
        expected,
        "arrays are copied between the frameworks",
    )
    return [on_cpu, absent(mps, NO_GPU, expected)]


def _shared(name: str, expected: str, consequence: str) -> Check:
    array = mx.zeros(_N)
    mx.eval(array)
    tensor = torch.utils.dlpack.from_dlpack(array)
    np.array(array, copy=False).fill(2.0)
    there = bool((tensor == 2.0).all())
    tensor.add_(1.0)
    if tensor.device.type == "mps":
        torch.mps.synchronize()
    back = bool(mx.all(array == 3.0).item())
    found = f"on {tensor.device}: " + ("one memory" if there and back else "two memories")
    return check(name, there and back, found, expected, consequence, otherwise=Result.WARN)
