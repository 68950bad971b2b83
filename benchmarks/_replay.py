"""Two processes write recorded supports into one arena without locks: what share is lost?

Each adds 1.0 to the elements that a worker's steps wrote, step after step, by the kernel that a run
uses for such a step, and computes nothing in between. So the two write all the time, which no run
does: an upper estimate of what a racy run of two workers loses.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier

import numpy as np
from numpy.typing import NDArray

from mlxhog.arena import Arena, ArenaHandle, Layout, Slot
from mlxhog.machine.processes import follow_parent
from mlxhog.optim import updates
from mlxhog.optim.updates import Float32, Int32, Rows

PATIENCE_S = 120.0
RACY = updates.WRITE_MODES["racy"]
Bits = NDArray[np.uint8]
Move = tuple[Slot, "Int32 | None", "Float32 | Rows"]
"""A parameter, the elements written of it (None: by its whole rows, or all), and the ones."""


def lost_share(layout: Layout, supports: Sequence[Bits], rounds: int) -> float:
    """Share of the adds that never arrived.

    Args:
        layout: of the parameters.
        supports: of each process, (steps, bytes) as in `Supports`.
        rounds: steps of each; the supports repeat.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(supports))
    with Arena.create(layout, write="racy") as arena:
        made = [
            context.Process(target=_write, args=(arena.handle(), bits, rounds, k + 1, barrier))
            for k, bits in enumerate(supports)
        ]
        for process in made:
            process.start()
        for process in made:
            process.join()
        codes = [process.exitcode for process in made]
        assert codes == [0] * len(made), f"exit codes of the writers: {codes}"
        arrived = float(arena.params.sum(dtype=np.float64))
    sizes = [np.bitwise_count(bits).sum(axis=1) for bits in supports]
    wanted = sum(float(each[k % len(each)]) for each in sizes for k in range(rounds))
    return 1.0 - arrived / wanted


def _write(handle: ArenaHandle, bits: Bits, rounds: int, worker: int, barrier: Barrier) -> None:
    follow_parent()
    arena = Arena.from_handle(handle, write="racy")
    steps = [list(_moves(arena.layout, row)) for row in bits]
    barrier.wait(PATIENCE_S)
    for k in range(rounds):
        seed = worker << 32 | k
        for slot, index, ones in steps[k % len(steps)]:
            if index is None:
                updates.add(arena.params, slot, ones, locks=None, mode=RACY, seed=seed)
            else:
                assert not isinstance(ones, Rows)
                updates.add_at(arena.params, slot, index, ones, locks=None, mode=RACY, seed=seed)
    arena.close()


def _moves(layout: Layout, row: Bits) -> Sequence[Move]:
    """A step's adds, in the form in which a worker makes them."""
    whole = np.unpackbits(row, bitorder="little", count=layout.n_floats).astype(bool)
    found: list[Move] = []
    for slot in layout.slots.values():
        mask = whole[slot.offset : slot.offset + slot.size].reshape(slot.shape[0], -1)
        touched = mask.any(axis=1)
        if mask.all():
            found.append((slot, None, np.ones(slot.shape, np.float32)))
        elif len(slot.shape) == 2 and touched.any() and mask[touched].all():
            ones = np.ones((int(touched.sum()), mask.shape[1]), np.float32)
            found.append((slot, None, Rows(np.flatnonzero(touched).astype(np.int32), ones)))
        elif touched.any():
            index = np.flatnonzero(mask).astype(np.int32)
            found.append((slot, index, np.ones(len(index), np.float32)))
    return found
