"""Probes of MLX, run in a child: shared memory, and access to the arena."""

from __future__ import annotations

import mmap
import time
from typing import Any, Final

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.nn.layers.linear import Linear

from mlxhog.arena.child import Lane
from mlxhog.doctor.accessors import FLOATS, Bench, CPUWriter, Increments
from mlxhog.doctor.checks import Check, CheckResult, absent, check
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32

PAGE: Final = 16_384
NO_GPU: Final = "no Apple GPU"
REFRESHED_S: Final = 0.005  # per 100 MB
_ADOPT = "mx.asarray(host, copy=False)"


def examine(lane: Lane, nbytes: int) -> list[Check]:
    """In a child: run each check with `nbytes` of memory, a multiple of 16 KiB."""
    checks = [_numpy_view(), _refresh(nbytes)]
    if not mx.metal.is_available():
        return [*checks, *(_refused(name, expected) for name, expected in _NEEDS_METAL.items())]
    host = _pages(nbytes)
    return [_gpu(), *checks, _adopt(host), _donation(host)]


_NEEDS_METAL: Final = {
    _ADOPT: "MLX sees what NumPy writes afterwards",
    "donation of imported memory": "unchanged by `W += 1`, item assignment and an optimizer step",
}


def _gpu() -> Check:
    info = mx.device_info(mx.gpu)
    description = ", ".join(f"{key} {value}" for key, value in sorted(info.items()))
    return Check("GPU", CheckResult.PASS, description, "a Metal device")


def _refused(name: str, expected: str) -> Check:
    """Check that MLX refuses the import without Metal, in place of a silent copy."""
    if name != _ADOPT:
        return absent(name, NO_GPU, expected)
    try:
        mx.asarray(_pages(PAGE), copy=False)
    except ValueError:
        return absent(name, f"{NO_GPU}; refused with ValueError, as documented", expected)
    return Check(
        name,
        CheckResult.WARN,
        "no error without Metal",
        "ValueError, or an alias",
        "MLX changed: mlxhog still reads by snapshot",
    )


def _numpy_view() -> Check:
    array = mx.zeros(1024)
    mx.eval(array)
    view: Float32 = np.array(array, copy=False)
    view[:] = 3.0
    total = mx.sum(array).item()
    return check(
        "NumPy view of an MLX array",
        total == 3.0 * 1024,
        f"MLX sums 1024 threes to {total:g}",
        "MLX sees what NumPy writes",
        "snapshots do not reach MLX: no MLX worker can train here",
    )


def _refresh(nbytes: int) -> Check:
    """Copy as many floats as an arena has into a flat MLX array, and compute with them."""
    name = "refresh of a flat MLX array"
    flat = mx.zeros(nbytes // 4)
    mx.eval(flat)
    view: Float32 = np.array(flat, copy=False)
    host = np.ones(nbytes // 4, np.float32)
    np.copyto(view, host)  # the first copy touches the pages
    host[:] = 2.0
    times = []
    for _ in range(3):  # other programs may delay some
        begin = time.perf_counter()
        np.copyto(view, host)
        times.append(time.perf_counter() - begin)
    took_s = min(times)
    exact = bool(mx.all(flat == 2.0).item())
    per_100_mb = took_s * 1e8 / nbytes
    speed = f"{per_100_mb * 1e3:.1f} ms per 100 MB"
    expected = f"exact, and at most {REFRESHED_S * 1e3:g} ms per 100 MB on a Mac"
    if not exact:
        return Check(
            name, CheckResult.FAIL, f"{speed}, other values", expected, "snapshots are wrong"
        )
    slow = mx.metal.is_available() and per_100_mb > REFRESHED_S
    return check(
        name, not slow, speed, expected, "steps of large models wait", otherwise=CheckResult.WARN
    )


def _adopt(host: Float32) -> Check:
    begin = time.perf_counter()
    array = mx.asarray(host, copy=False)
    took_s = time.perf_counter() - begin
    host[:] = 5.0
    view: Float32 = np.array(array, copy=False)
    same = (view.ctypes.data, view.nbytes) == (host.ctypes.data, host.nbytes)
    shared = same and bool(mx.all(array == 5.0, stream=mx.gpu).item())
    return check(
        _ADOPT,
        shared,
        f"{'the same' if shared else 'other'} bytes, in {took_s * 1e3:.2f} ms",
        _NEEDS_METAL[_ADOPT],
        "no --read live and no --gpu-write metal; snapshots instead",
        otherwise=CheckResult.WARN,
    )


def _donation(host: Float32) -> Check:
    name = "donation of imported memory"
    host[:] = 1.0
    _write_to_copies(host)
    return check(
        name,
        bool((host == 1.0).all()),
        "unchanged" if (host == 1.0).all() else "overwritten",
        _NEEDS_METAL[name],
        "MLX writes its results into the arena: use another version, and --read snapshot",
    )


def _write_to_copies(host: Float32) -> None:
    """Run operations on imported arrays whose results MLX must write to memory of its own."""
    weight: Any = mx.asarray(host, copy=False)
    weight += 1
    mx.eval(weight)
    weight = mx.asarray(host, copy=False)
    weight[0] = 7.0
    mx.eval(weight)
    del weight
    layer: Any = Linear(16, 16, bias=False)
    layer.weight = mx.asarray(host, copy=False)[:256].reshape(16, 16)
    optimizer = optim.SGD(learning_rate=0.5)
    optimizer.update(layer, {"weight": mx.ones((16, 16))})
    mx.eval(layer.parameters())


def unaligned(lane: Lane, nbytes: int) -> list[Check]:
    """In a child, which this may end: import memory that begins inside a page.

    MLX expects that Metal returns no buffer. Metal's own checks (MTL_DEBUG_LAYER) assert instead.
    """
    name, expected = "import of an unaligned address", "ValueError"
    if not mx.metal.is_available():
        return [absent(name, NO_GPU, expected)]
    host = np.frombuffer(mmap.mmap(-1, nbytes + PAGE), np.float32)[PAGE // 16 :]
    try:
        mx.asarray(host, copy=False)
    except ValueError:
        return [Check(name, CheckResult.PASS, "ValueError", expected)]
    consequence = "imports are not safe: use --read snapshot and --gpu-write cpu"
    return [Check(name, CheckResult.WARN, "no error", expected, consequence)]


def _pages(nbytes: int) -> Float32:
    """Return whole pages, as in an arena."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.float32)


# -- MLX as a reader: of a snapshot, and of the shared bytes ---------------------------------------


class SnapshotReader:
    """A flat MLX array whose memory is filled from the arena before each evaluation.

    Args:
        bench: the arena.
        slot: unused.
        device: "cpu" or "gpu".
    """

    def __init__(self, bench: Bench, slot: int, device: str) -> None:
        self._bench = bench
        self._device = mx.Device(mx.gpu if device == "gpu" else mx.cpu)
        self._flat = mx.zeros(FLOATS)
        mx.eval(self._flat)
        self._inbox: Float32 = np.array(self._flat, copy=False)

    def read(self) -> Float32:
        """Return the values that it sees now."""
        updates.snapshot(self._inbox, self._bench.shared("dense"))
        return _evaluated(self._flat, self._device)


class LiveReader:
    """The arena imported without a copy; needs Metal."""

    def __init__(self, bench: Bench, slot: int) -> None:
        slot_of = bench.slot("dense")
        flat = mx.asarray(bench.flat, copy=False)
        self._live = flat[slot_of.offset : slot_of.offset + slot_of.size]

    def read(self) -> Float32:
        """Return the values that it sees now."""
        return _evaluated(self._live, mx.Device(mx.gpu))


def _evaluated(array: mx.array, device: mx.Device) -> Float32:
    """Return the values that a computation on the device sees: the product is a new array."""
    values = mx.multiply(array, 1.0, stream=device)
    mx.eval(values)
    return np.array(values, copy=False)


# -- MLX as a writer: it makes the increments, native code adds them -------------------------------


def cpu_writer(bench: Bench, slot: int) -> CPUWriter:
    """Create a writer whose increments MLX evaluates on the CPU, anew in each pass."""

    def fresh(shape: tuple[int, ...], value: float) -> Increments:
        def make() -> np.ndarray:
            array = mx.full(shape, value, dtype=mx.float32, stream=mx.cpu)
            mx.eval(array)
            return np.array(array, copy=False)

        return make

    return CPUWriter(bench, slot, fresh)
