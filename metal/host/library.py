"""A compiled kernel as a Python function."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlxhog.metal.kernel import Size

_MESSAGE_BYTES = 1024


class LaunchRecord(ctypes.Structure):
    """`metal_host::Launch`, field by field (`include/shim/launch.h`)."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("os_threads", ctypes.c_uint32),
        ("lockstep", ctypes.c_uint32),
        ("chaos_period", ctypes.c_uint32),
        ("message_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("message", ctypes.c_char_p),
    )


@cache
def _opened(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def call(
    path: Path,
    name: str,
    buffers: Sequence[NDArray[Any]],
    *,
    grid: Size,
    group: Size,
    threads: int,
    lockstep: bool,
    chaos_period: int,
    seed: int,
) -> str:
    """Run a kernel to its end; other Python threads go on meanwhile.

    Args:
        path: the library.
        name: of the kernel.
        buffers: by slot; the kernel sees their memory.
        grid: threads in all.
        group: threads in a group, at most the grid's.
        threads: OS threads that run groups.
        lockstep: threads of a group may meet at barriers.
        chaos_period: a race point switches threads once in so many; 0: never.
        seed: of chaos.

    Returns:
        "", or why the kernel failed while it ran: a barrier that cannot open, for example.
    """
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    record = LaunchRecord(
        (ctypes.c_uint32 * 3)(*grid),
        (ctypes.c_uint32 * 3)(*group),
        threads,
        lockstep,
        chaos_period,
        _MESSAGE_BYTES,
        seed,
        ctypes.cast(message, ctypes.c_char_p),
    )
    pointers = (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers))
    run = _opened(path)[f"run_{name}"]
    return message.value.decode() if run(pointers, ctypes.byref(record)) else ""
