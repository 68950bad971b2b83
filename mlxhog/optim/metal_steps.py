"""Optimizer updates by Metal kernels: from directions in NumPy to launches on the wrapped arena.

Neighboring dense parameters share a launch; each parameter with touched rows has its own. The
parameters, and segments that trace updates, are wrapped once without a copy (else `NotShared`), and
kernels write them in place. So is the memory of the directions, where an elementwise optimizer
leaves them as it passes over gradient and moments; those of others are copied there, once. Rows and
coefficients are copied. Moments are the CPU's. A launch ends before the next begins.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlxhog.arena import Arena, Slot
from mlxhog.errors import EnvironmentLacks
from mlxhog.metal import engines
from mlxhog.metal.engine import MetalEngine
from mlxhog.metal.engines import wrappable
from mlxhog.metal.kernels.adds import FLAG_FLOATS, HP, dense_axpy, step
from mlxhog.optim.gradients import Float32, Rows


class NotShared(EnvironmentLacks):
    """A GPU cannot use this arena in place; the message is the reason."""


def check_live_reads(arena: Arena, slot: int) -> None:
    """Raise `NotShared` unless MLX on the GPU sees changes of the parameters, as this worker."""
    try:
        gpu = engines.create("mlx")
    except EnvironmentLacks as error:
        raise NotShared(str(error)) from error
    _wrapped(gpu, arena, slot, frozenset(), [])


def steps_of_worker(
    arena: Arena, decay: frozenset[str], *, engine: str, threads: int, slot: int,
    recorded: Sequence[str],
) -> MetalSteps:  # fmt: skip
    """Return the writer of a worker's updates, with wrapped memory and built kernels.

    `engine` is one of `mlxhog.metal.engines.NAMES`, emulated by some threads; `recorded` are the
    segments that trace updates, see `UpdateTarget.record`.

    Raises:
        NotShared: the engine cannot import the memory, and is not emulated.
        EnvironmentLacks: the GPU, or the C++ compiler of an emulated one, is missing.
        MetalError: a kernel does not compile.
    """
    gpu = engines.create(engine, threads=threads)
    steps = _wrapped(gpu, arena, slot, decay, recorded)
    steps.warm_up(recorded=bool(recorded))
    return steps


def _wrapped(
    gpu: MetalEngine, arena: Arena, slot: int, decay: frozenset[str], recorded: Sequence[str]
) -> MetalSteps:
    """Return the writer of an engine, once it and the CPU have seen each other's changes."""
    try:
        for name in ("params", *recorded):
            if arena.layout.straddles(name) and not gpu.emulated:
                nbytes = arena.layout.segments[name].nbytes
                raise NotShared(
                    f"segment {name} has {nbytes:,} bytes, and shared memory of macOS consists "
                    "of regions of 4 GiB, which a GPU imports one by one; smaller models fit"
                )
        steps = MetalSteps(gpu, arena.params, arena.layout.slots, decay)
        for name in recorded:  # now, while the CPU can still take over
            steps.wrap(arena.segment(name))
        if not engines.shares_memory(gpu, steps.arena, arena.params, arena.layout.self_check(slot)):
            raise NotShared("one of CPU and GPU does not see the writes of the other")
    except EnvironmentLacks as error:
        if gpu.emulated:
            raise
        raise NotShared(str(error)) from error
    return steps


class MetalSteps:
    """Writes of one engine to the parameters. Belongs to the worker that made it."""

    def __init__(
        self, engine: MetalEngine, flat: Float32, slots: Mapping[str, Slot], decay: frozenset[str]
    ) -> None:
        """Wrap the parameters, (n,) float32, or raise EnvironmentLacks."""
        self.engine = engine
        self.arena = engine.wrap(wrappable(flat))
        dense = (one.offset + one.size for one in slots.values() if one.kind != "table")
        self._directions = pages(max(dense, default=1))  # as the arena has dense parameters
        self._wrapped_directions = engine.wrap(wrappable(self._directions))
        self._decays = engine.array(decay_flags(slots, decay, flat.size))
        self._wrapped: dict[int, Any] = {}

    def wrap(self, flat: Float32) -> Any:
        """Return a segment of the arena as the engine's own array; wrapped once."""
        address = flat.ctypes.data
        if address not in self._wrapped:
            self._wrapped[address] = self.engine.wrap(wrappable(flat))
        return self._wrapped[address]

    def direction(self, slot: Slot) -> Float32:
        """Return the memory of a parameter's direction, which the kernels read in place."""
        return self._directions[slot.offset : slot.offset + slot.size].reshape(slot.shape)

    def write(
        self,
        directions: Sequence[tuple[Slot, Float32 | Rows]],
        decayed: Sequence[float],
        plain: Sequence[float],
        record: tuple[Float32, Float32] | None = None,
    ) -> None:
        """Update parameters along directions, in place, or raise MetalError.

        `decayed` and `plain` are the `rule.Write` of parameters with and without weight decay;
        `record` traces the updates of dense ones.

        Concurrency: no add is lost beside others of one GPU, nor in emulation; `mlxhog doctor`
        measures whether one is lost beside a CPU.
        """
        array = self.engine.array
        rates = {"decays": self._decays, "hp": array(np.array([*decayed, *plain], np.float32))}
        for run in runs(directions):
            first, u = run[0]
            x, height = {"arena": self.arena}, None
            if isinstance(u, Rows):
                x |= {"rows": array(u.index), "g": array(u.values)}
                height = first.shape[0]
            else:
                for slot, own in run:
                    if own.ctypes.data != self.direction(slot).ctypes.data:
                        self.direction(slot)[...] = own.reshape(slot.shape)
                last = run[-1][0]
                x["g"] = self._wrapped_directions[first.offset : last.offset + last.size]
                if record is not None and first.kind != "rows":
                    x |= {"last": self.wrap(record[0]), "prev": self.wrap(record[1])}
            self.engine.run(step(x, **rates, offset=first.offset, height=height))

    def add(self, offset: int, values: Float32) -> None:
        """Add values to floats of the parameter segment from `offset` on, as updates are."""
        self.engine.run(dense_axpy(self.arena, self.engine.array(values), scale=1.0, offset=offset))

    def warm_up(self, *, recorded: bool = False) -> None:
        """Build the kernels, by launches on scratch memory."""
        array, n = self.engine.array, FLAG_FLOATS
        names = ("arena", "g", "last", "prev")
        x = {name: array(np.zeros((1, n) if name == "g" else n, np.float32)) for name in names}
        rates = {"decays": array(np.zeros(1, np.uint8)), "hp": array(np.zeros(HP, np.float32))}
        scratch = {name: x[name] for name in names[:2]}
        rows = {"rows": array(np.zeros(1, np.int32))}
        self.engine.run(step(scratch, **rates, offset=0))
        self.engine.run(step(scratch | rows, **rates, offset=0, height=1))
        if recorded:
            self.engine.run(step(x, **rates, offset=0))


def pages(floats: int) -> Float32:
    """Return zeros in whole pages of memory, which a GPU can import."""
    nbytes = -(-4 * floats // mmap.PAGESIZE) * mmap.PAGESIZE
    return np.frombuffer(mmap.mmap(-1, nbytes), np.float32)


def runs(pairs: Sequence[tuple[Slot, Float32 | Rows]]) -> list[list[tuple[Slot, Any]]]:
    """Group gradients into launches: neighboring dense ones together, each `Rows` alone."""
    groups: list[list[tuple[Slot, Any]]] = []
    for slot, grad in sorted(pairs, key=lambda pair: pair[0].offset):
        before, of_before = groups[-1][-1] if groups else (slot, None)
        if (
            isinstance(grad, np.ndarray)
            and isinstance(of_before, np.ndarray)
            and slot.offset == _next_boundary(before)
            and slot.kind == before.kind
        ):
            groups[-1].append((slot, grad))
        else:
            groups.append([(slot, grad)])
    return groups


def _next_boundary(slot: Slot) -> int:
    end = slot.offset + slot.size
    return end + -end % FLAG_FLOATS


def decay_flags(slots: Mapping[str, Slot], decay: frozenset[str], floats: int) -> Any:
    """Whether weight decay applies, uint8, one flag per 32 floats of the parameter segment."""
    flags = np.zeros(-(-floats // FLAG_FLOATS), np.uint8)
    for name, slot in slots.items():
        begin = slot.offset // FLAG_FLOATS
        flags[begin : _next_boundary(slot) // FLAG_FLOATS] = name in decay
    return flags
