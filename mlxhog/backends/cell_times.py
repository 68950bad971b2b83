"""Times of the cells of a model on a GPU, eager and by Metal kernels.

Each time is the median of a few forward and backward passes of one cell on random inputs, whose
size is that of no run, so that times of different runs compare. The two implementations take turns,
so that what slows the machine slows both.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any

import numpy as np

from mlxhog.backends.probes import Array, Device
from mlxhog.base.capabilities import CellShape, CellTimes
from mlxhog.models.ops import kernels
from mlxhog.models.ops.operators import Ops

REPEATS = 5
B, S = 4, 512
EPS = 1e-6

Pass = Callable[[], object]


def measure(
    name: str, ops: Ops, cells: Iterable[CellShape], *, threads: int,
    beat: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.perf_counter,
) -> Iterator[CellTimes]:  # fmt: skip
    """Yield the times of cells on a backend, `ops` against the eager operators.

    An error of a kernel is raised as the framework raises it.
    """
    framework, device = name.split(":")
    eager, at = kernels.choose(framework, "eager", device), Device(framework, device, threads)
    for cell in cells:
        passes = [_pass(at, one, cell, compiled=name == "mlx:gpu") for one in (eager, ops)]
        times = [list[float](), list[float]()]
        for repeat in range(REPEATS + 1):
            for spent, run in zip(times, passes, strict=True):
                began_s = clock()
                run()
                if repeat:  # the first one compiles
                    spent.append(clock() - began_s)
            beat()
        yield CellTimes(name, cell, *map(median, times))


def _pass(device: Device, ops: Ops, cell: CellShape, *, compiled: bool) -> Pass:
    """Return a function that computes a cell with all gradients, and waits for them."""
    inputs = {name: device.array(x) for name, x in _inputs(cell).items()}

    def total(x: dict[str, Any]) -> Any:
        how: dict[str, Any] = {"silu": True} if cell.operator == "causal_conv" else {}
        if cell.operator == "mlstm_cell":
            how = {"chunk_size": cell.sizes[-1], "eps": EPS}
        return getattr(ops, cell.operator)(*(x[name] for name in inputs), **how)[0].sum()

    def gradient(x: dict[str, Any]) -> Any:
        """One number that needs every gradient: a lazy framework computes what is read."""
        _, grads = device.xp.value_and_grad(total, x)
        return sum(grad.sum() for grad in grads.values())

    if compiled:  # as a GPU worker of MLX does
        import mlx.core as mx

        gradient = mx.compile(gradient)
    return lambda: device.host(gradient(inputs))


def _inputs(cell: CellShape) -> dict[str, Array]:
    """Draw inputs of an operator, in the order of its arguments."""
    if cell.operator == "causal_conv":
        K, C = cell.sizes
        shapes = {"x": (B, S, C), "w": (C, 1, K), "b": (C,)}
    elif cell.operator == "slstm_cell":
        NH, DH = cell.sizes
        shapes = {gate: (B, S, NH, DH) for gate in "ifzo"}
        shapes |= {"R": (NH, 4 * DH, DH), "b": (4 * NH * DH,)}
    else:
        NH, DK, DV, _ = cell.sizes
        shapes = {"q": (B, S, NH, DK), "k": (B, S, NH, DK), "v": (B, S, NH, DV)}
        shapes |= {gate: (B, S, NH) for gate in "if"}
    rng = np.random.default_rng(0)
    return {name: 0.1 * rng.standard_normal(size, np.float32) for name, size in shapes.items()}
