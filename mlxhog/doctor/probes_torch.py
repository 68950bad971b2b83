"""Probes of PyTorch, run in a child: shared memory, and access to the arena."""

from __future__ import annotations

import sys
from typing import Final

import numpy as np
import torch
import torch.utils.dlpack

from mlxhog.arena.child import Lane
from mlxhog.doctor.accessors import FLOATS, Bench, CPUWriter, Increments, Pass
from mlxhog.doctor.checks import Check, CheckResult, absent, check
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32


def examine(lane: Lane) -> list[Check]:
    """In a child: run the checks that need torch alone."""
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
        "no --read live for torch:cpu workers, and snapshots do not reach torch",
    )


def _cuda() -> Check:
    name, expected = "torch without CUDA on Linux", "the CPU build if there is no CUDA"
    if sys.platform != "linux":
        return absent(name, "not Linux", expected)
    wasted = torch.version.cuda is not None and not torch.cuda.is_available()
    return check(
        name,
        not wasted,
        f"torch {torch.__version__}",
        expected,
        "unused gigabytes; for the CPU build: python -m pip install torch with the index that the "
        "selector on pytorch.org names",
        otherwise=CheckResult.WARN,
    )


# -- memory of MLX and torch together --------------------------------------------------------------

# There is no synchronisation: MLX must evaluate before torch reads, and torch must finish before
# MLX reads.

NO_MPS: Final = "no Apple GPU that torch sees"
_SHARED_FLOATS: Final = 64


def examine_with_mlx(lane: Lane) -> list[Check]:
    """In a child: check DLPack on the CPU and on MPS."""
    mps = "DLPack from MLX to torch on MPS"
    expected = "each sees what the other writes"
    if torch.backends.mps.is_available():
        return [_shared(mps, expected, "no --gpu-write metal for torch:mps workers here")]
    on_cpu = _shared(
        "DLPack from MLX to torch on the CPU",
        expected,
        "arrays are copied between the frameworks",
    )
    return [on_cpu, absent(mps, NO_MPS, expected)]


def _shared(name: str, expected: str, consequence: str) -> Check:
    import mlx.core as mx  # the other probes here do not need it

    array = mx.zeros(_SHARED_FLOATS)
    mx.eval(array)
    tensor = torch.utils.dlpack.from_dlpack(array)
    np.array(array, copy=False).fill(2.0)
    there = bool((tensor == 2.0).all())
    tensor.add_(1.0)
    if tensor.device.type == "mps":
        torch.mps.synchronize()
    back = bool(mx.all(array == 3.0).item())
    memory = f"on {tensor.device}: " + ("one memory" if there and back else "two memories")
    return check(name, there and back, memory, expected, consequence, otherwise=CheckResult.WARN)


# -- PyTorch as a reader: of a snapshot, and on the CPU of the shared bytes ------------------------


class SnapshotReader:
    """A tensor filled from the arena before each computation.

    Args:
        bench: the arena.
        slot: unused.
        device: "cpu" or "mps".
    """

    def __init__(self, bench: Bench, slot: int, device: str) -> None:
        torch.set_num_threads(1)
        self._bench = bench
        self._device = torch.device(device)
        self._host = torch.zeros(FLOATS)
        self._inbox: Float32 = self._host.numpy()

    def read(self) -> Float32:
        """Return the values that it sees now."""
        updates.snapshot(self._inbox, self._bench.shared("dense"))
        return _computed(self._host.to(self._device))


class LiveReader:
    """A tensor that aliases the shared bytes."""

    def __init__(self, bench: Bench, slot: int) -> None:
        torch.set_num_threads(1)
        self._live = torch.from_numpy(bench.shared("dense"))

    def read(self) -> Float32:
        """Return the values that it sees now."""
        return _computed(self._live)


def _computed(tensor: torch.Tensor) -> Float32:
    """Return the values that a computation on the device sees: the product is a new tensor."""
    values: Float32 = (tensor * 1.0).cpu().numpy()
    return values


# -- PyTorch as a writer: as in workers, and as in a program without mlxhog ------------------------


def cpu_writer(bench: Bench, slot: int) -> CPUWriter:
    """Create a writer whose increments torch computes, anew in each pass."""
    torch.set_num_threads(1)

    def fresh(shape: tuple[int, ...], value: float) -> Increments:
        def make() -> np.ndarray:
            array: np.ndarray = torch.full(shape, value).numpy()
            return array

        return make

    return CPUWriter(bench, slot, fresh)


class NaiveWriter:
    """`tensor.add_(increments)` on a tensor that aliases the shared bytes."""

    def __init__(self, bench: Bench, slot: int) -> None:
        torch.set_num_threads(1)
        self._bench = bench

    def adder(self, kernel: str, mode: str, value: float) -> Pass:
        """Return one pass; dense only, and no mode."""
        shared = torch.from_numpy(self._bench.shared(kernel))
        increments = torch.full(shared.shape, value)

        def add() -> None:
            shared.add_(increments)

        return add
