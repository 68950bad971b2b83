"""Which PyTorch this is, and whether it shares memory with NumPy."""

from __future__ import annotations

import sys

import numpy as np
import torch

from mlxhog.arena.child import Lane
from mlxhog.doctor.checks import Check, Result, absent, check


def examine(lane: Lane) -> list[Check]:
    """In a child: try each way that needs torch alone."""
    return [_from_numpy(), _cuda()]


def _from_numpy() -> Check:
    host = np.zeros(64, np.float32)
    tensor = torch.from_numpy(host)
    host[:] = 2.0
    there = bool((tensor == 2.0).all())
    tensor.add_(1.0)
    back = bool((host == 3.0).all())
    return check(
        "torch.from_numpy",
        there and back,
        "one memory" if there and back else "two memories",
        "torch and NumPy see each other's writes",
        "torch:cpu workers cannot read live; snapshots do not reach torch",
    )


def _cuda() -> Check:
    name, expected = "torch without CUDA on Linux", "the CPU build where there is no CUDA device"
    if sys.platform != "linux":
        return absent(name, "not Linux", expected)
    wasted = torch.version.cuda is not None and not torch.cuda.is_available()
    return check(
        name,
        not wasted,
        f"torch {torch.__version__}",
        expected,
        "gigabytes that nothing here uses; the CPU build: python -m pip install torch "
        "with the index that the selector on pytorch.org names",
        otherwise=Result.WARN,
    )
