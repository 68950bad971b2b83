"""Where a run keeps what in its arena: parameters, data, order, words.

segment            dtype    content
params             float32  the shared parameters, each of kind "rows"
copy.<slot>        float32  a worker's own parameters, where the scheme has copies
data.<name>        any      training data, written once by the host
classic.order      int32    the examples of the epoch in hand
classic.words      uint8    stop, turn, queue and progress (`metal/native/classic/board.h`)
classic.rounds     uint8    the words of `rounds.py`
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import Arena, Layout, plan
from mlxhog.classic import rounds
from mlxhog.classic.problem import Block, Float32, Memory

ORDER, WORDS = "classic.order", "classic.words"
COPY = "copy"
_DATA = "data."


def layout(
    params: Mapping[str, Block],
    data: Mapping[str, NDArray[Any]],
    n_examples: int,
    workers: int,
    *,
    copies: bool,
) -> Layout:
    """Plan the arena of a run.

    Args:
        params: of the problem.
        data: of the problem.
        n_examples: of the problem.
        workers: most workers that any run in this arena has.
        copies: whether each of them keeps parameters of its own.
    """
    return plan(
        params,
        max_workers=workers,
        private=(COPY,) if copies else (),
        n_tickets=1,
        extra={
            **{_DATA + name: (array.dtype.str, array.size) for name, array in data.items()},
            ORDER: ("int32", n_examples),
            WORDS: ("uint8", _native.ClassicBoard.bytes(workers)),
            rounds.SEGMENT: ("uint8", rounds.size(workers)),
        },
    )


def params(arena: Arena, slot: int | None = None) -> dict[str, Float32]:
    """The shared parameters by name, or the copy that belongs to a worker slot."""
    flat = arena.params if slot is None else arena.segment(f"{COPY}.{slot}")
    return {
        name: flat[at.offset : at.offset + at.size].reshape(at.shape)
        for name, at in arena.layout.slots.items()
    }


def data(arena: Arena, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The training data by name, in their shapes."""
    return {name: arena.segment(_DATA + name).reshape(shape) for name, shape in shapes.items()}


def memory(arena: Arena, shapes: Mapping[str, tuple[int, ...]], slot: int | None = None) -> Memory:
    """The arena as a native problem sees it; the data read-only.

    Args:
        arena: of this run.
        shapes: of the data.
        slot: whose copy of the parameters; None is the shared ones.
    """
    views = data(arena, shapes)
    for view in views.values():
        view.flags.writeable = False
    words = {name: at.row_word0 for name, at in arena.layout.slots.items()}
    return Memory(
        params(arena, slot),
        views,
        {name: word for name, word in words.items() if word is not None},
    )


def touch(arrays: Iterable[NDArray[Any]]) -> None:
    """Read a byte of every page, so that no epoch pays for mapping them into this process."""
    for array in arrays:
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)
