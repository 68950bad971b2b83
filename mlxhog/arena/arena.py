"""The arena: one block of shared memory with a model's parameters and all shared state of a run.

`layout.py` has the byte offsets, `segment.py` owns the memory; here the bytes become arrays,
counters, the worker table and the stripe locks.
"""

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import reduction
from pathlib import Path
from socket import socket
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import segment as segments
from mlxhog.arena.control import COUNTERS
from mlxhog.arena.layout import Layout, Slot
from mlxhog.arena.process import process_start_time
from mlxhog.arena.requests import CONNECT_S, SNAPSHOTS, RunServer, attach
from mlxhog.arena.workers import WorkerPhase, WorkerState, WorkerTable
from mlxhog.errors import ArenaError

WRITE_MODES = ("lossless", "racy", "cas")


@dataclass(frozen=True)
class ArenaHandle:
    """An arena on its way to a spawned process; pickle it only while spawning one."""

    fd: int
    layout: Layout
    write: str  # how every writer adds its steps: `lossless`, `racy` or `cas`
    creator: tuple[int, int]  # pid and start time of the process that created it

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Let the new process inherit the descriptor."""
        return _received, (reduction.DupFd(self.fd), self.layout, self.write, self.creator)


def _received(inherited: Any, *about: Any) -> ArenaHandle:
    return ArenaHandle(inherited.detach(), *about)


class Arena:
    """Parameters and shared state, mapped into this process.

    Concurrency: arrays are the shared bytes. Aligned 32-bit elements never tear; everything else is
    up to the kernels in `mlxhog.optim.updates`.
    """

    def __init__(self, mapping: mmap.mmap, handle: ArenaHandle, *, readonly: bool) -> None:
        """Use `create`, `from_handle` or `connect`."""
        self._mapping: mmap.mmap | None = mapping
        self._handle, self._fds = handle, tuple[int, ...]((handle.fd,))
        self.layout, self.write, self.creator = handle.layout, handle.write, handle.creator
        self.readonly = readonly  # then a write to it kills the process
        self.note = ""  # for the user if the arena is a file instead of shared memory
        self._connection: socket | None = None
        self.counters = COUNTERS.open(self.segment("counters"))
        self.workers = WorkerTable(
            self.segment("workers"), self.layout.max_workers, self.segment("locks")
        )

    @classmethod
    def create(
        cls, layout: Layout, *, write: str = "lossless", fallback: Path | None = None
    ) -> "Arena":
        """A new arena, all zeros; it exists while a process maps it.

        Args:
            layout: from `plan`.
            write: the one write mode of this arena.
            fallback: directory of the file in its place if the system forbids shared memory (then
                `note` says so); None is the temporary directory.

        Raises:
            EnvironmentLacks: not enough memory.
            ArenaError: no such mode.
        """
        if write not in WRITE_MODES:
            raise ArenaError(f"no write mode {write!r}; choose from {', '.join(WRITE_MODES)}")
        new = segments.create(layout.total_bytes, fallback=fallback)
        creator = (os.getpid(), process_start_time(os.getpid()))
        arena = cls(new.mapping, ArenaHandle(new.fd, layout, write, creator), readonly=False)
        arena._fds = (new.fd, new.readonly_fd)
        host = arena.workers.acquire_slot(arena.workers.host_slot, *creator)
        host.state, host.phase = WorkerState.RUNNING, WorkerPhase.IDLE
        arena.note = new.note
        return arena

    @classmethod
    def from_handle(cls, handle: ArenaHandle, *, readonly: bool = False) -> "Arena":
        """Attach the arena of a handle among the arguments of this process; it stays usable."""
        return cls._attached(replace(handle, fd=os.dup(handle.fd)), readonly=readonly)

    @classmethod
    def _attached(cls, handle: ArenaHandle, *, readonly: bool) -> "Arena":
        """The arena of a descriptor, which it then owns; an ArenaError if it cannot be mapped."""
        access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
        try:
            mapping = mmap.mmap(handle.fd, handle.layout.total_bytes, access=access)
        except (OSError, ValueError) as error:
            os.close(handle.fd)
            raise ArenaError(
                f"the arena cannot be mapped ({error}); the descriptor of a reader can be mapped "
                "read-only"
            ) from error
        return cls(mapping, handle, readonly=readonly)

    @classmethod
    def connect(cls, path: Path, timeout_s: float = CONNECT_S) -> "Arena":
        """Attach, read-only, the arena that a running training serves at a socket.

        Raises:
            NoAnswer: its process does not answer in this time.
            ArenaError: no process serves there, or it does not serve an arena.
        """
        about, fd, connection = attach(path, timeout_s)
        arena = cls._attached(ArenaHandle(fd, *about), readonly=True)
        arena._connection = connection
        return arena

    def ask_for_snapshots(self) -> None:
        """Let the run that serves this arena publish snapshots, until this arena is closed."""
        assert self._connection is not None, "only a connected arena is another process's"
        try:
            self._connection.send(SNAPSHOTS)
        except OSError as error:
            raise ArenaError("the run has just ended") from error

    def lay_out(self, layout: Layout) -> None:
        """Use another layout of this size, with the same kept segments.

        The run's creator decides so, while no worker uses the others.
        """
        self.layout, self._handle = layout, replace(self._handle, layout=layout)

    def handle(self) -> ArenaHandle:
        """The argument by which a spawned process attaches; the arena must stay open until then."""
        self._mapped()
        return self._handle

    def serve(self, path: Path) -> RunServer:
        """Serve this arena, read-only, to later readers of the same user, and take requests.

        A socket of a dead process at the path is replaced.
        """
        self._mapped()
        return RunServer(path, (self.layout, self.write, self.creator), (self._fds[-1],))

    @property
    def params(self) -> NDArray[np.float32]:
        """The whole parameter segment, (n_floats,) float32, including probe and padding."""
        return self.segment("params")

    @property
    def dense(self) -> NDArray[np.float32]:
        """The parameter segment before its tables, (n_dense,) float32."""
        return self.params[: self.layout.n_dense]

    @property
    def probe(self) -> NDArray[np.float32]:
        """The lost-update probe, (64,): every step adds 1 to each element, up to 2^24 in all."""
        return _part(self.params, self.layout.probe)

    def lost_update_rate(self) -> float | None:
        """Share of probe increments that were lost, in [0, 1]; None before the first step."""
        adds = sum(entry.probe_adds for entry in self.workers)
        return max(0.0, 1.0 - float(self.probe.mean(dtype=np.float64)) / adds) if adds else None

    def param(self, name: str) -> NDArray[np.float32]:
        """One parameter in its own shape, float32."""
        if name not in self.layout.slots:
            raise ArenaError(f"no parameter {name!r} in this arena of {len(self.layout.slots)}")
        return _part(self.params, self.layout.slots[name])

    def views(self, segment: str) -> dict[str, NDArray[np.float32]]:
        """The parts of a segment of parameters or state, by parameter, in their shapes."""
        flat = self.segment(segment)
        return {name: _part(flat, slot) for name, slot in self.layout.parts(segment).items()}

    def segment(self, name: str) -> NDArray[Any]:
        """One segment, one-dimensional, of its dtype."""
        if name not in self.layout.segments:
            raise ArenaError(
                f"no segment {name!r} in this arena; it has {', '.join(self.layout.segments)}"
            )
        place = self.layout.segments[name]
        return np.frombuffer(self._mapped(), place.dtype, place.count, place.offset)

    def locks(self, slot: int | None = None) -> _native.Locks:
        """The stripe and row locks, for the process in worker slot `slot`; None is the creator."""
        slot = self.workers.host_slot if slot is None else slot
        generation = self.workers.entry(slot).generation & 0xFFFF
        return _native.Locks(self.segment("locks"), self.segment("workers"), slot, generation)

    def close(self) -> None:
        """Unmap. Arrays of this arena keep the memory mapped until the last of them is freed."""
        if self._mapping is None:
            return
        mapping, self._mapping = self._mapping, None
        self.workers.close()
        del self.workers, self.counters
        for fd in self._fds:
            os.close(fd)
        if self._connection is not None:
            self._connection.close()
        with suppress(BufferError):  # a view is still in use; the mapping ends with it
            mapping.close()

    def _mapped(self) -> mmap.mmap:
        if self._mapping is None:
            raise ArenaError("this arena is closed")
        return self._mapping

    def __enter__(self) -> Self:
        """Close when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the arena."""
        self.close()


def _part(flat: NDArray[np.float32], slot: Slot) -> NDArray[np.float32]:
    return flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
