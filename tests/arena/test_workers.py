"""The worker table, its slots given out again, and the rings of records: a late reader's, too."""

import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np

from mlxhog import _native
from mlxhog.arena import control
from mlxhog.arena.control import CAPACITY, RING_BYTES, RecordKind, Ring
from mlxhog.arena.process import process_start_time
from mlxhog.arena.workers import ENTRY_BYTES, Entry, WorkerPhase, WorkerState
from tests.strategies.runs import strategy

FIELDS = {
    name: (field.at, struct.calcsize(field.form))
    for name, field in vars(Entry).items()
    if hasattr(field, "form")
}
"""First byte and size of each field."""


def test_python_and_cpp_agree_on_every_field_of_an_entry():
    assert _native.worker_fields().items() <= FIELDS.items()
    assert max(at + size for at, size in FIELDS.values()) <= ENTRY_BYTES


def test_every_field_reads_back_what_was_written_and_touches_no_other(arena):
    table = arena.workers
    for i, name in enumerate(FIELDS):
        setattr(table.entry(2), name, i + 1)
    assert [getattr(table.entry(2), name) for name in FIELDS] == list(range(1, len(FIELDS) + 1))
    assert {getattr(table.entry(slot), name) for slot in (1, 3) for name in FIELDS} == {0}


def test_a_dead_workers_slot_is_inherited_with_its_totals_and_its_locks_are_free(arena):
    table = arena.workers
    first, other = table.acquire_slot(1, 11, 99), table.acquire_slot(2, 12)
    locks = [one.slot | one.generation << 16 for one in (first, other)]
    words = arena.segment("locks")
    words[:2] = locks
    first.steps, first.opt_step, first.nonfinite_in_row, first.ticket = 40, 38, 2, 7
    owner, generation = first.incarnation, first.generation
    table.mark_dead(1)
    assert (first.dead, first.state) == (1, WorkerState.DEAD)
    second = table.acquire_slot(1, 12, 100)
    assert words[:2].tolist() == [0, locks[1]]
    assert (second.steps, second.opt_step, second.restarts) == (40, 38, 1)
    assert (second.nonfinite_in_row, second.ticket, second.phase) == (0, -1, WorkerPhase.STARTING)
    assert (second.dead, second.pid, second.start_time) == (0, 12, 100)
    assert second.incarnation > other.incarnation > owner  # never used before
    assert second.generation == generation + 1


def test_a_clusters_sidecar_is_no_worker_that_trains_and_no_step_is_expected_in_no_time(arena):
    table = arena.workers
    for slot in (1, 2):
        entry = table.acquire_slot(slot)
        entry.state, entry.steps, entry.compute_ns = WorkerState.RUNNING, 2 * slot, 12 * 10**9
    table.entry(3).is_sidecar = 1
    table.acquire_slot(3)
    hogwild = strategy("hogwild", 2)
    assert hogwild.state_slots(arena) == (1, 2)
    assert hogwild.step_s(arena) == 3.0
    table.mark_dead(2)
    table.entry(1).steps = 0  # as one that has just joined
    assert [one.slot for one in table.training()] == [1, 2]
    assert hogwild.step_s(arena) == 3.0
    table.entry(2).steps = 0
    assert hogwild.step_s(arena) == 0.0


def test_a_start_time_tells_a_process_from_its_successor_and_from_none():
    mine = process_start_time(os.getpid())
    assert mine > 0
    assert process_start_time(os.getpid()) == mine
    assert process_start_time(0) == 0
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_start_time(child.pid) > mine
        child.communicate(b"\n")
    assert process_start_time(child.pid) == 0


def test_records_come_once_and_in_order_and_a_late_reader_loses_the_oldest_only():
    data = np.zeros(RING_BYTES, np.uint8)
    writer = Ring(data)

    def append(versions):
        for version in versions:
            writer.append(kind=RecordKind.STEP, worker=1, version=version, loss=version / 2)

    append([9])
    reader = Ring(data)  # it begins with what comes next
    append(range(3))
    assert reader.drain()["version"].tolist() == [0, 1, 2]
    append(range(3, 5))
    records = reader.drain()
    assert records["version"].tolist() == [3, 4]
    assert records["loss"].tolist() == [1.5, 2.0]
    assert len(reader.drain()) == 0
    assert reader.n_lost == 0
    append(range(CAPACITY + 10))
    assert reader.drain()["version"].tolist() == list(range(10, CAPACITY + 10))
    assert reader.n_lost == 10


def test_a_record_that_is_overwritten_while_it_is_copied_is_lost_and_not_torn(monkeypatch):
    data = np.zeros(RING_BYTES, np.uint8)
    writer, reader = Ring(data), Ring(data)

    def append(versions):
        for version in versions:
            writer.append(kind=RecordKind.STEP, version=version)

    append(range(CAPACITY))
    look = control._native.nobody_writes

    def at_this_moment(*arguments):  # the worker writes on, between copy and second look
        append(range(CAPACITY, CAPACITY + 3))
        control._native.begin_writing(data, 0)  # and has begun the next one
        return look(*arguments)

    native = SimpleNamespace(**{**vars(control._native), "nobody_writes": at_this_moment})
    with monkeypatch.context() as patch:
        patch.setattr(control, "_native", native)
        assert reader.drain()["version"].tolist() == list(range(4, CAPACITY))
    assert reader.n_lost == 4
    writer = Ring(data)  # of the successor of a worker that died amid a record
    append([7])
    assert reader.drain()["version"].tolist() == [CAPACITY, CAPACITY + 1, CAPACITY + 2, 7]
    append(range(3 * CAPACITY))
    assert len(reader.drain()) == CAPACITY
    assert reader.n_lost == 4 + 2 * CAPACITY
