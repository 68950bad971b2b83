"""The worker table: the worker of each slot, and its progress.

Slots are numbered 1 .. max_workers, entry k lies at byte 512 (k - 1) of the segment `workers`; one
more entry belongs to the arena's creator. `Entry` has the fields; the same table in C++ is
`metal/native/arena/worker_table.h`.

Fields on which other processes base decisions have acquire and release order (a waiter that reads a
pid also sees its start time, and no lock word from before that process); the rest are plain aligned
accesses, which never tear but promise no order.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog import _native
from mlxhog.arena.process import monotonic_ns, process_start_time

ENTRY_BYTES = 512

MAX_NONFINITE = 20
"""Steps of a worker in a row with a gradient that is not finite, after which the run ends."""


class WorkerState(IntEnum):
    """State of a slot, as the supervisor knows it."""

    FREE = 0
    STARTING = 1  # or building another strategy
    RUNNING = 2
    FINISHED = 3
    DEAD = 4
    LEAVING = 5  # it finishes its step and ends, and is not replaced


class WorkerPhase(IntEnum):
    """The current activity of a worker."""

    IDLE = 0
    STARTING = 1
    DATA = 2
    READ = 3
    COMPUTE = 4
    APPLY = 5
    WAITING = 6
    EVALUATE = 7
    SAMPLE = 8


QUIESCED = (
    WorkerPhase.IDLE,
    WorkerPhase.WAITING,
    WorkerPhase.STARTING,
    WorkerPhase.EVALUATE,
    WorkerPhase.SAMPLE,
)
"""Phases in which a worker changes nothing, and holds no ticket that it works on."""


class _Field:
    """A field of an entry: its type, as `memoryview.cast` names it, and its first byte.

    One aligned access reads or writes it; an `atomic` one by acquire loads and release stores.
    """

    def __init__(self, form: str, at: int, *, atomic: bool = False) -> None:
        self.form, self.at, self.index = form, at, at // struct.calcsize(form)
        self._load = self._store = None
        if atomic:
            bits = 8 * struct.calcsize(form)
            self._load = getattr(_native, f"load_u{bits}")
            self._store = getattr(_native, f"store_u{bits}")

    def __get__(self, entry: "Entry", owner: type) -> Any:
        if self._load is not None:
            return self._load(entry.data, self.at)
        return entry.views[self.form][self.index]

    def __set__(self, entry: "Entry", value: float) -> None:
        value = value if self.form == "d" else int(value)
        if self._store is not None:
            self._store(entry.data, self.at, value)
        else:
            entry.views[self.form][self.index] = value


_field: Any = _Field


class Entry:
    """One slot of the table; attributes are the shared memory itself."""

    def __init__(self, slot: int, data: NDArray[np.uint8]) -> None:
        self.slot, self.data = slot, data
        raw = data.data.cast("B")
        self.views: dict[str, memoryview[Any]] = {
            "I": raw.cast("I"), "q": raw.cast("q"), "Q": raw.cast("Q"), "d": raw.cast("d"),
        }  # fmt: skip

    # written by the supervisor
    state: int = _field("I", 0, atomic=True)  # `WorkerState`
    generation: int = _field("I", 4, atomic=True)  # uses of this slot; low 16 bits in lock words
    dead: int = _field("I", 8, atomic=True)  # 1 = `waitpid` done; its locks may be taken over
    incarnation: int = _field("I", 12, atomic=True)  # owner of tickets: 24 bits, never used twice
    pid: int = _field("q", 16, atomic=True)
    start_time: int = _field("Q", 24)  # `process_start_time(pid)`, 0 unknown
    # written by the worker
    heartbeat_ns: int = _field("Q", 32, atomic=True)  # `monotonic_ns()` of its last sign of life
    phase: int = _field("I", 40)  # `WorkerPhase`
    takeovers: int = _field("I", 44)  # stripes it took over from the dead
    # written by the supervisor, while the slot is free
    is_sidecar: int = _field("I", 48)  # 1 = the sidecar of a cluster, which trains nothing
    # written by the worker
    ticket: int = _field("q", 128)  # the ticket in hand, -1 none
    version_read: int = _field("Q", 136)  # updates applied when it last read the parameters
    steps: int = _field("Q", 144)
    tokens: int = _field("Q", 152)
    loss: float = _field("d", 160)  # of its last step
    dropped: int = _field("Q", 168)  # steps dropped for a gradient that was not finite
    nonfinite_in_row: int = _field("Q", 176)  # such steps since the last good one
    staleness_sum: int = _field("Q", 184)
    staleness_max: int = _field("Q", 192)
    probe_adds: int = _field("Q", 200)  # times it added 1 to the lost-update probe
    read_ns: int = _field("Q", 208)  # time spent reading parameters
    compute_ns: int = _field("Q", 216)  # ... computing gradients
    apply_ns: int = _field("Q", 224)  # ... applying them
    wait_ns: int = _field("Q", 232)  # ... waiting for others, locks, text
    rss_bytes: int = _field("Q", 240)
    opt_step: int = _field("Q", 248)  # steps its optimizer state has seen
    # written by the supervisor
    restarts: int = _field("Q", 256)  # workers that died in this slot and were replaced
    torn: int = _field("Q", 264)  # tickets that died half applied
    # written by the worker
    rate_sum: float = _field("d", 272)  # sum of its learning rates, if they depend on delay
    forward_ns: int = _field("Q", 280)  # of compute_ns: forward passes
    optimizer_ns: int = _field("Q", 288)  # of apply_ns: gradients into steps
    other_ns: int = _field("Q", 296)  # ... for tickets, batches and records

    @property
    def step_s(self) -> float:
        """Mean seconds of a step so far, without waits for others; 0 before the first."""
        spent_ns = self.read_ns + self.compute_ns + self.apply_ns
        return spent_ns / self.steps / 1e9 if self.steps else 0.0

    def beat(self, phase: WorkerPhase | None = None) -> int:
        """Update the heartbeat, at the beginning of a phase or within one; returns its time."""
        if phase is not None:
            self.phase = phase
        self.heartbeat_ns = now_ns = monotonic_ns()
        return now_ns


class WorkerTable:
    """All slots. Only the supervisor assigns slots; a worker writes its own entry."""

    def __init__(
        self, data: NDArray[np.uint8], max_workers: int, lock_words: NDArray[np.uint32]
    ) -> None:
        self.max_workers = max_workers
        self.host_slot = max_workers + 1
        self._data = data
        self._lock_words = lock_words
        self._entries: dict[int, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Entries of all worker slots, used or not; without the creator's."""
        return (self.entry(slot) for slot in range(1, self.max_workers + 1))

    def training(self) -> Iterator[Entry]:
        """Entries of the slots of workers that train, dead ones included."""
        return (one for one in self if one.state != WorkerState.FREE and not one.is_sidecar)

    def entry(self, slot: int) -> Entry:
        """The entry of one slot, from 1 to `host_slot`."""
        assert 1 <= slot <= self.host_slot, slot
        if slot not in self._entries:
            start = (slot - 1) * ENTRY_BYTES
            self._entries[slot] = Entry(slot, self._data[start : start + ENTRY_BYTES])
        return self._entries[slot]

    def acquire_slot(self, slot: int, pid: int = 0, start_time: int = 0) -> Entry:
        """Assign a slot to a new worker, in state STARTING, with an incarnation never used before.

        A slot that is used again keeps its counts (steps, tokens, times, the optimizer's step
        counter), and counts a restart if its last worker died; that worker's locks are freed.

        Args:
            slot: a slot whose last worker is dead or finished, if it had one.
            pid: the worker's, or 0 while it is not yet spawned.
            start_time: `process_start_time(pid)`, or 0.
        """
        entry = self.entry(slot)
        assert entry.state not in (
            WorkerState.STARTING,
            WorkerState.RUNNING,
            WorkerState.LEAVING,
        ), entry.pid
        incarnation = 1 + max(e.incarnation for e in (*self, self.entry(self.host_slot)))
        # With this order a process that waits for a lock of the slot's last owner never takes the
        # new owner for it: while pid is 0 no process is probed; a new generation has no locks yet.
        entry.pid = 0
        if entry.generation:
            _native.sweep_locks(self._lock_words, entry.slot)
        entry.generation += 1
        entry.incarnation = incarnation
        entry.restarts += entry.state == WorkerState.DEAD
        entry.ticket, entry.version_read = -1, 0
        entry.nonfinite_in_row = entry.rss_bytes = 0
        entry.beat(WorkerPhase.STARTING)
        entry.dead = 0
        entry.start_time = start_time
        entry.pid = pid
        entry.state = WorkerState.STARTING
        return entry

    def set_process(self, slot: int, pid: int) -> None:
        """Set the process of a slot that was acquired before the process was spawned."""
        entry = self.entry(slot)
        entry.start_time = process_start_time(pid)
        entry.pid = pid

    def mark_dead(self, slot: int) -> None:
        """Declare that `waitpid` has returned the slot's process: its locks may be taken over.

        The slot becomes DEAD, unless it is FINISHED.
        """
        entry = self.entry(slot)
        entry.dead = 1
        if entry.state != WorkerState.FINISHED:
            entry.state = WorkerState.DEAD

    def release(self, slot: int) -> None:
        """Free a slot after `waitpid` of its process; its counts stay for reports."""
        self.entry(slot).state = WorkerState.FREE

    def close(self) -> None:
        """Release the mapping; entries of this table must not be used afterwards."""
        for entry in self._entries.values():
            for view in entry.views.values():
                view.release()
        self._entries.clear()
