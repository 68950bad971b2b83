"""The arena: one block of shared memory that holds a model's parameters and all a run shares.

`layout.py` says where everything lies, `segment.py` owns the memory and checks its first page; here
the bytes become arrays, counters, the worker table and the stripe locks.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena import segment as segments
from mlxhog.arena.control import Counters
from mlxhog.arena.handover import ANSWER_S, DescriptorServer, receive_fds
from mlxhog.arena.layout import PAGE, Layout
from mlxhog.arena.process import process_start_time
from mlxhog.arena.segment import Header, read_header
from mlxhog.arena.workers import Phase, State, WorkerTable
from mlxhog.errors import ArenaError, WriteModeError

WRITE_MODES = ("lossless", "racy", "cas")


@dataclass(frozen=True)
class ArenaHandle:
    """An arena's descriptor on its way to a spawned process; pickle it only while spawning one."""

    fd: int

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        """Let the new process inherit the descriptor."""
        return _receive_handle, (reduction.DupFd(self.fd),)


def _receive_handle(inherited: Any) -> ArenaHandle:
    return ArenaHandle(inherited.detach())


class Arena:
    """Parameters and shared state, mapped into this process.

    Attributes:
        layout: where everything lies.
        write: how every writer adds its steps: `lossless`, `racy` or `cas`.
        run_id: the run it belongs to.
        readonly: whether this mapping refuses to write; a write then ends the process.
        note: "", or what its creator should tell the user of how it is kept.
        readers_fd: of the page of a run's readers (`published.py`), which whoever connected may
            take, setting this to None; None where there is none.
        counters: shared counters by name.
        workers: the worker table.

    Concurrency: arrays are the shared bytes. Aligned 32-bit elements never tear; everything else is
    up to the kernels in `mlxhog.optim.updates`.
    """

    def __init__(
        self, mapping: mmap.mmap, fds: tuple[int, ...], *, readonly: bool, write: str | None
    ) -> None:
        """Use `create`, `from_handle`, `from_fd` or `connect`."""
        self._mapping: mmap.mmap | None = mapping
        self._fds = fds
        self._header, self.layout = _read(mapping)
        self.write = self._header.write
        self.run_id = self._header.run_id
        self.readonly = readonly
        self.note = ""
        self.readers_fd: int | None = None
        if write is not None and write != self.write:
            raise WriteModeError(
                f"this arena is written in mode {self.write!r}, not {write!r}; writers of two "
                "modes lose each other's updates, so use the run's mode or start a new run"
            )
        self.counters = Counters(self.segment("counters"))
        self.workers = WorkerTable(
            self.segment("workers"), self.layout.max_workers, self.segment("locks")
        )

    @classmethod
    def create(
        cls,
        layout: Layout,
        *,
        write: str = "lossless",
        run_id: str = "",
        directory: Path | None = None,
        fallback: Path | None = None,
    ) -> Arena:
        """A new arena, all zeros, which exists as long as a process maps it.

        Args:
            layout: from `plan`.
            write: the one write mode of this arena.
            run_id: at most 64 bytes.
            directory: back it by an unnamed file there, not by shared memory.
            fallback: where that file goes if the system forbids shared memory (then `note` says
                so); None is the temporary directory.

        Raises:
            EnvironmentLacks: not enough memory.
            WriteModeError: no such mode.
        """
        if write not in WRITE_MODES:
            raise WriteModeError(f"no write mode {write!r}; choose from {', '.join(WRITE_MODES)}")
        text = layout.to_json().encode()
        header = Header(
            total_bytes=layout.total_bytes,
            layout_bytes=len(text),
            layout_sha256=bytes.fromhex(layout.digest),
            run_id=run_id,
            write=write,
            creator_pid=os.getpid(),
            creator_start_time=process_start_time(os.getpid()),
        ).pack()
        new = segments.create(
            layout.total_bytes,
            needed_bytes=layout.occupied_bytes,
            directory=directory,
            fallback=fallback,
        )
        new.mapping[PAGE : PAGE + len(text)] = text
        new.mapping[8 : len(header)] = header[8:]
        new.mapping[:8] = header[:8]
        arena = cls(new.mapping, (new.fd, new.readonly_fd), readonly=False, write=None)
        host = arena.workers.acquire_slot(
            os.getpid(), process_start_time(os.getpid()), slot=arena.workers.host_slot
        )
        host.state, host.phase = State.RUNNING, Phase.IDLE
        arena.note = new.note
        return arena

    @classmethod
    def from_handle(
        cls, handle: ArenaHandle, *, write: str | None = None, readonly: bool = False
    ) -> Arena:
        """Attach the arena whose handle came with the arguments of this spawned process.

        Args:
            handle: from `Arena.handle`; stays usable.
            write: the mode this process will write in, checked against the arena's.
            readonly: map without the right to write.

        Raises:
            ArenaError: not an arena, damaged or truncated.
            WriteModeError: the arena has another write mode.
        """
        return cls.from_fd(os.dup(handle.fd), write=write, readonly=readonly)

    @classmethod
    def from_fd(cls, fd: int, *, write: str | None = None, readonly: bool = True) -> Arena:
        """Attach the arena behind a descriptor, which then belongs to the arena.

        Raises:
            ArenaError: not an arena, damaged or truncated; the descriptor is closed.
            WriteModeError: the arena has another write mode.
        """
        try:
            mapping = segments.attach(fd, readonly=readonly)
            return cls(mapping, (fd,), readonly=readonly, write=write)
        except ArenaError:
            os.close(fd)
            raise

    @classmethod
    def connect(cls, path: Path, timeout_s: float = ANSWER_S) -> Arena:
        """Attach, read-only, the arena that a running training serves at a socket.

        Raises:
            NoAnswer: its process does not answer in this time.
            ArenaError: nobody serves there, or what is served is not an arena.
        """
        fd, *others = receive_fds(path, timeout_s)
        try:
            arena = cls.from_fd(fd, readonly=True)
        except ArenaError:
            for other in others:
                os.close(other)
            raise
        arena.readers_fd = others[0] if others else None
        return arena

    def handle(self) -> ArenaHandle:
        """What a spawned process needs to attach; the arena has to stay open until it has."""
        self._mapped()
        return ArenaHandle(self._fds[0])

    def serve(self, path: Path, readers_fd: int | None = None) -> DescriptorServer:
        """Hand this arena, without the right to write it, to later readers of the same user.

        Args:
            path: of the socket.
            readers_fd: of the page in which they say what they hold; stays the caller's.

        Raises:
            ArenaError: the path is taken by a living process, or unusable.
        """
        self._mapped()
        page = () if readers_fd is None else (readers_fd,)
        return DescriptorServer(path, self._fds[-1], *page)

    @property
    def creator(self) -> tuple[int, int]:
        """Pid and start time of the process that created it."""
        return self._header.creator_pid, self._header.creator_start_time

    @property
    def params(self) -> NDArray[np.float32]:
        """The whole parameter segment, (n_floats,) float32, probe and padding included."""
        return self.segment("params")

    @property
    def probe(self) -> NDArray[np.float32]:
        """The lost-update probe, (64,): every step adds 1 to each element."""
        slot = self.layout.probe
        return self.params[slot.offset : slot.offset + slot.size]

    def lost_update_rate(self) -> float | None:
        """Share of probe increments that never arrived; None before the first step."""
        adds = sum(entry.probe_adds for entry in self.workers)
        return lost_update_rate(self.probe, adds) if adds else None

    def param(self, name: str) -> NDArray[np.float32]:
        """One parameter in its own shape, float32.

        Raises:
            ArenaError: no such parameter.
        """
        if name not in self.layout.slots:
            raise ArenaError(f"no parameter {name!r} in this arena of {len(self.layout.slots)}")
        slot = self.layout.slots[name]
        return self.params[slot.offset : slot.offset + slot.size].reshape(slot.shape)

    def segment(self, name: str) -> NDArray[Any]:
        """One segment, one-dimensional, of its dtype.

        Raises:
            ArenaError: no such segment.
        """
        if name not in self.layout.segments:
            raise ArenaError(
                f"no segment {name!r} in this arena; it has {', '.join(self.layout.segments)}"
            )
        place = self.layout.segments[name]
        return np.frombuffer(
            self._mapped(), dtype=place.dtype, count=place.count, offset=place.offset
        )

    def locks(self, slot: int | None = None) -> _native.Locks:
        """The stripe and row locks, as the process in worker slot `slot` takes them.

        Args:
            slot: this process's slot; None is the creator's own.

        Raises:
            ArenaError: the mapping is read-only, or only the creator may use None.
        """
        if self.readonly:
            raise ArenaError("this arena is attached read-only; readers never lock")
        if slot is None:
            if os.getpid() != self._header.creator_pid:
                raise ArenaError(
                    "name the worker slot: only the arena's creator has one of its own"
                )
            slot = self.workers.host_slot
        generation = self.workers.entry(slot).generation & 0xFFFF
        return _native.Locks(self.segment("locks"), self.segment("workers"), slot, generation)

    def close(self) -> None:
        """Unmap. Arrays handed out keep the memory mapped until the last of them is gone."""
        if self._mapping is None:
            return
        mapping, self._mapping = self._mapping, None
        self.workers.close()
        del self.workers, self.counters
        for fd in self._fds:
            os.close(fd)
        if self.readers_fd is not None:
            os.close(self.readers_fd)
        try:
            mapping.close()
        except BufferError:
            pass  # a view still lives; the mapping goes with it

    def _mapped(self) -> mmap.mmap:
        if self._mapping is None:
            raise ArenaError("this arena is closed")
        return self._mapping

    def __enter__(self) -> Arena:
        """Close when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unmap."""
        self.close()


def lost_update_rate(probe: NDArray[np.float32], adds: int) -> float:
    """Share of `adds` probe increments that never arrived, in [0, 1].

    Exact up to 2^24 adds per element, where float32 stops counting.
    """
    return max(0.0, 1.0 - float(probe.mean(dtype=np.float64)) / adds)


def _read(mapping: mmap.mmap) -> tuple[Header, Layout]:
    """Checked header and layout; no view of the mapping outlives this call."""
    with memoryview(mapping) as data:
        header, layout = read_header(data)
    if header.write not in WRITE_MODES:
        raise ArenaError(
            f"the arena names write mode {header.write!r}; this mlxhog knows "
            f"{', '.join(WRITE_MODES)}"
        )
    return header, layout
