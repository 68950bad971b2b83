"""Record rings: one writer, one reader, and what becomes of a reader that is late."""

import numpy as np

from mlxhog.arena.control import CAPACITY, RING_BYTES, RecordKind, Ring


def append(ring, versions):
    for version in versions:
        ring.append(kind=RecordKind.STEP, worker=1, version=version, loss=version / 2)


def test_records_come_once_and_in_order():
    data = np.zeros(RING_BYTES, np.uint8)
    writer, reader = Ring(data), Ring(data)
    append(writer, range(3))
    assert reader.drain()["version"].tolist() == [0, 1, 2]
    append(writer, range(3, 5))
    records = reader.drain()
    assert records["version"].tolist() == [3, 4]
    assert records["loss"].tolist() == [1.5, 2.0]
    assert len(reader.drain()) == 0


def test_a_reader_that_falls_a_whole_ring_behind_loses_the_oldest_records_only():
    data = np.zeros(RING_BYTES, np.uint8)
    writer, reader = Ring(data), Ring(data)
    append(writer, range(CAPACITY + 10))
    versions = reader.drain()["version"].tolist()
    # The oldest slot that is left may be the one being written, so it is not read.
    assert versions == list(range(11, CAPACITY + 10))


def test_a_reader_begins_with_what_comes_next():
    data = np.zeros(RING_BYTES, np.uint8)
    append(Ring(data), range(4))
    late = Ring(data)
    append(Ring(data), [4])
    assert late.drain()["version"].tolist() == [4]
